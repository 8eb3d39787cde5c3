//! The databases of the services on a server, and their roles.

use anyhow::Context as _;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions,
};

use crate::postgres::PASSWORD;

/// The role that owns the database and the tables of a service.
pub(crate) fn owner(service: &str) -> String {
    format!("{service}_owner")
}

/// The administrator of a server, who creates roles and databases.
pub(crate) struct Administrator {
    connection: PgConnection,
    options: PgConnectOptions,
}

impl Administrator {
    /// One at a time: several systems that start on one server create the same roles. The others
    /// wait until this one is closed.
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let options: PgConnectOptions = url.parse()?;
        let connection = PgConnection::connect_with(&options).await;
        let mut connection = connection.context("connect as administrator")?;
        connection.execute("SELECT pg_advisory_lock(1)").await?;
        Ok(Self {
            connection,
            options,
        })
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        Ok(self.connection.close().await?)
    }

    /// Creates roles and a database that only its owner can enter, unless they exist. A database
    /// that belongs to its service becomes the owner's, with all that is in it. `owner` may be
    /// `service`.
    pub(crate) async fn create(
        &mut self,
        database: &str,
        service: &str,
        owner: &str,
    ) -> anyhow::Result<()> {
        for role in [service, owner] {
            self.create_role(role)
                .await
                .with_context(|| format!("create the role {role}"))?;
        }
        let found = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1";
        let found = sqlx::query_scalar::<_, String>(found).bind(database);
        match found.fetch_optional(&mut self.connection).await? {
            None => self.create_database(database, owner).await,
            Some(found) if found != owner => {
                let reassign = format!("REASSIGN OWNED BY \"{service}\" TO \"{owner}\"");
                self.execute_in(database, reassign).await
            }
            Some(_) => Ok(()),
        }
    }

    async fn create_role(&mut self, role: &str) -> anyhow::Result<()> {
        let exists = sqlx::query("SELECT FROM pg_roles WHERE rolname = $1").bind(role);
        if exists.fetch_optional(&mut self.connection).await?.is_none() {
            let create = format!("CREATE ROLE \"{role}\" LOGIN PASSWORD '{PASSWORD}'");
            self.connection.execute(AssertSqlSafe(create)).await?;
        }
        Ok(())
    }

    async fn create_database(&mut self, database: &str, owner: &str) -> anyhow::Result<()> {
        for create in [
            format!("CREATE DATABASE \"{database}\" OWNER \"{owner}\""),
            format!("REVOKE ALL ON DATABASE \"{database}\" FROM PUBLIC"),
        ] {
            self.connection.execute(AssertSqlSafe(create)).await?;
        }
        let version = "SELECT current_setting('server_version_num')::int";
        let version = sqlx::query_scalar::<_, i32>(version);
        if version.fetch_one(&mut self.connection).await? < 150_000 {
            // As since version 15: only the owner of the database creates tables in it.
            let schema = "ALTER SCHEMA public OWNER TO pg_database_owner;
                          REVOKE CREATE ON SCHEMA public FROM PUBLIC";
            self.execute_in(database, schema.to_owned()).await?;
        }
        Ok(())
    }

    async fn execute_in(&self, database: &str, statements: String) -> anyhow::Result<()> {
        let options = self.options.clone().database(database);
        let mut connection = PgConnection::connect_with(&options).await?;
        connection.execute(AssertSqlSafe(statements)).await?;
        Ok(connection.close().await?)
    }
}

/// The URL of `database` for `role` on the server of `admin_url`.
pub(crate) fn url_for(admin_url: &str, role: &str, database: &str) -> anyhow::Result<String> {
    let (_, rest) = admin_url
        .split_once("://")
        .context("DATABASE: expected postgres://user:password@host:port/database")?;
    let server = rest.rsplit_once('@').map_or(rest, |(_, server)| server);
    let server = server.split(['/', '?']).next().unwrap_or_default();
    Ok(format!("postgres://{role}:{PASSWORD}@{server}/{database}"))
}
