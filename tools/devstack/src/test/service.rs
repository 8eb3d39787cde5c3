//! Replicas of one service in front of a real database and broker.

use anyhow::Context as _;
use async_nats::jetstream;
use futures::future::try_join_all;
use sqlx::PgPool;

use super::{Program, broker, service_database};
use crate::NatsServer;

/// A service as its tests see it: a broker, a database and replicas, all for one test.
#[derive(Debug)]
pub struct ServiceFixture {
    pub broker: NatsServer,
    /// The service's database, with the service's rights.
    pub database: PgPool,
    /// The URL of the database for the owner of its tables.
    pub owner_url: String,
    pub jetstream: jetstream::Context,
    pub replicas: Vec<Program>,
    program: String,
    settings: Vec<(String, String)>,
}

impl ServiceFixture {
    /// Starts `replicas` of `program` (`env!("CARGO_BIN_EXE_...")`) at the same time.
    /// `DATABASE_URL` and `NATS_URL` are set; `settings` adds to them or replaces them.
    pub async fn start(
        program: &str,
        settings: &[(&str, &str)],
        replicas: usize,
    ) -> anyhow::Result<Self> {
        let broker = broker().await?;
        let database = service_database(program, settings).await?;
        let broker_url = broker.url();
        let addresses = [
            ("DATABASE_URL", &*database.url),
            ("MIGRATIONS", "check"),
            ("NATS_URL", &broker_url),
        ];
        let settings = addresses
            .iter()
            .chain(settings)
            .map(|(name, value)| (name.to_string(), value.to_string()));
        let mut fixture = Self {
            broker,
            owner_url: database.owner_url.clone(),
            database: database.pool,
            jetstream: crate::jetstream::open(&broker_url).await?,
            replicas: Vec::new(),
            program: program.to_owned(),
            settings: settings.collect(),
        };
        fixture.add_replicas(replicas).await?;
        Ok(fixture)
    }

    /// Starts more replicas with the same settings.
    pub async fn add_replicas(&mut self, count: usize) -> anyhow::Result<()> {
        let settings: Vec<(&str, &str)> = self
            .settings
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let starting = (0..count).map(|_| Program::start(&self.program, &settings));
        let started = try_join_all(starting).await?;
        self.replicas.extend(started);
        Ok(())
    }

    /// The URL of the API of a replica.
    pub fn url(&self, replica: usize) -> String {
        self.replicas[replica].url.clone()
    }

    /// The result of a query for one number in the service's database.
    pub async fn count(&self, query: &'static str) -> anyhow::Result<i64> {
        let count = sqlx::query_scalar(query).fetch_one(&self.database).await;
        count.with_context(|| query.to_owned())
    }
}
