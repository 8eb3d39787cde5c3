//! The connection pool of a service and its migrations.

use std::{borrow::Cow, io, time::Duration};

use anyhow::Context as _;
use backon::{BackoffBuilder as _, ExponentialBuilder, Retryable as _};
use futures::future::BoxFuture;
use sqlx::{
    Connection as _, PgConnection, PgPool,
    migrate::{Migrate as _, MigrateError, Migrator},
    postgres::PgPoolOptions,
};

use crate::{
    rights,
    settings::{DatabaseSettings, Migrations},
    shutdown,
};

const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection that is returned to the pool may take to respond.
const TEST_TIMEOUT: Duration = Duration::from_secs(2);
/// An index on a large table takes minutes.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(3600);

/// Connects and migrates, in the order given, or waits until somebody else has migrated. Grants the
/// role that the settings name its rights, when the owner of the tables migrates. Waits for a
/// server that is not up yet, and for a role or a database that an operator has not made yet.
/// Several replicas may start at once: one migrates, the others wait for its lock.
///
/// Boxed, so that the driver is compiled once, here, and not again in every service.
///
/// # Errors
/// A migration that fails, or that was changed after it had been applied.
pub fn connect<'a>(
    settings: &'a DatabaseSettings,
    service: &'a str,
    mut migrators: Vec<Migrator>,
) -> BoxFuture<'a, anyhow::Result<PgPool>> {
    Box::pin(async move {
        let pool = pool(settings, service)?;
        open(&pool, 1).await?;
        for migrator in &mut migrators {
            // A newer version may have migrated before: its migrations only add, and this version
            // can still restart, and run after a roll-back.
            migrator.set_ignore_missing(true);
        }
        let migrated = match settings.migrations {
            Migrations::Apply => migrate(&pool, &migrators, settings.role()).await,
            Migrations::Check => wait_until_migrated(&pool, &migrators).await,
        };
        migrated.context("migrate the database")?;
        // Not before: replicas that have all connections would wait for each other for the one of
        // the migration.
        open(&pool, settings.pool_size).await?;
        Ok(pool)
    })
}

/// Opens connections of the pool, or waits for the server. To open one takes a process of the
/// server and thousands of hashes of the password: a service whose first load found an empty pool
/// would let requests time out.
async fn open(pool: &PgPool, size: u32) -> anyhow::Result<()> {
    let open = || async {
        let mut connections = Vec::new();
        for _ in 0..size {
            connections.push(pool.acquire().await?);
        }
        Ok(())
    };
    open.retry(start_delays())
        .when(may_come_up)
        .notify(|error, delay| {
            tracing::warn!(%error, "PostgreSQL is unavailable; the next attempt is in {delay:?}");
        })
        .await
        .context("connect to the database that DATABASE_URL names")
}

/// Migrates on a connection with time limits of its own, and grants `role` what a service needs. A
/// lock that is not free soon is tried again, so that the migration does not queue in front of the
/// traffic of the replicas that serve.
async fn migrate(pool: &PgPool, migrators: &[Migrator], role: Option<&str>) -> anyhow::Result<()> {
    let options = (*pool.connect_options()).clone().options([
        (
            "statement_timeout",
            MIGRATION_TIMEOUT.as_millis().to_string(),
        ),
        ("lock_timeout", LOCK_TIMEOUT.as_millis().to_string()),
    ]);
    let migrate = || async {
        let mut connection = PgConnection::connect_with(&options).await?;
        if let Some(role) = role {
            rights::grant(&mut connection, role, migrators).await?;
        }
        for migrator in migrators {
            migrator.run_direct(None, &mut connection, false).await?;
        }
        Ok(connection.close().await?)
    };
    let migrated = migrate.retry(start_delays()).when(has_to_wait);
    let notified = migrated.notify(|error: &MigrateError, delay| {
        tracing::info!(%error,
            "a migration waits for a lock, a role or a connection; \
             the next attempt is in {delay:?}");
    });
    Ok(notified.await?)
}

/// Waits until every migration is applied.
async fn wait_until_migrated(pool: &PgPool, migrators: &[Migrator]) -> anyhow::Result<()> {
    let mut delays = start_delays().build();
    loop {
        let missing = match find_missing(pool, migrators).await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => format!("migration {missing} is not applied"),
            Err(MigrateError::Execute(error)) if may_come_up(&error) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        let delay = delays.next().unwrap_or(START_DELAY_MAX);
        tracing::warn!(
            missing,
            "the service waits for its task `migrate`; it looks again in {delay:?}"
        );
        tokio::time::sleep(delay).await;
    }
}

/// The version of the first migration that the database does not have.
async fn find_missing(pool: &PgPool, migrators: &[Migrator]) -> Result<Option<i64>, MigrateError> {
    let mut connection = pool.acquire().await?;
    for migrator in migrators {
        let applied = connection.list_applied_migrations(&migrator.table_name);
        let applied = match applied.await {
            Ok(applied) => applied,
            Err(error) if is_without_table(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        for migration in migrator.iter() {
            let version = migration.version;
            match applied.iter().find(|applied| applied.version == version) {
                None => return Ok(Some(version)),
                Some(applied) if applied.checksum != migration.checksum => {
                    return Err(MigrateError::VersionMismatch(version));
                }
                Some(_) => {}
            }
        }
    }
    Ok(None)
}

/// Nothing was ever applied (undefined_table).
fn is_without_table(error: &MigrateError) -> bool {
    sqlstate(error).is_some_and(|code| code == "42P01")
}

/// Another replica migrates, or a transaction uses the table (lock_not_available,
/// deadlock_detected). Or an operator of PostgreSQL has not made the role yet that is granted its
/// rights (undefined_object). Or there is no connection yet; one that is lost during a migration
/// may have been ended by an operator.
fn has_to_wait(error: &MigrateError) -> bool {
    if let MigrateError::Execute(error) = error
        && is_away(error)
    {
        return true;
    }
    let is_migration = matches!(error, MigrateError::ExecuteMigration(..));
    sqlstate(error).is_some_and(|code| match &*code {
        "55P03" | "40P01" => true,
        "42704" => !is_migration,
        _ => false,
    })
}

fn sqlstate(error: &MigrateError) -> Option<Cow<'_, str>> {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            error.as_database_error()?.code()
        }
        _ => None,
    }
}

fn pool(settings: &DatabaseSettings, service: &str) -> anyhow::Result<PgPool> {
    let options = settings.connect_options().map_err(anyhow::Error::msg)?;
    let milliseconds = |limit: Duration| limit.as_millis().to_string();
    let options = options.application_name(service).options([
        // No statement of a service takes long; one that does has gone wrong.
        ("statement_timeout", milliseconds(shutdown::STEP)),
        ("lock_timeout", milliseconds(LOCK_TIMEOUT)),
        (
            "idle_in_transaction_session_timeout",
            milliseconds(shutdown::STEP),
        ),
        // Every statement has an index and few rows. A plan that is made while a table is small is
        // kept, and must be right for a table that has grown: nested loops over indexes, never a
        // scan of the whole table (docs/decisions/0006-plans.md).
        ("enable_seqscan", "off".to_owned()),
        ("enable_hashjoin", "off".to_owned()),
        ("enable_mergejoin", "off".to_owned()),
        // One plan for all arguments. The server would plan for those of each execution, and
        // that takes longer over partitions than to read.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        // The estimates of such plans grow with the table. Above a limit the server would compile
        // each of them, at each execution, for a hundred times as long as it then runs.
        ("jit", "off".to_owned()),
    ]);
    let pool = PgPoolOptions::new()
        .max_connections(settings.pool_size)
        // They stay open: see `open_all`. None is replaced because of its age or while nobody needs
        // it.
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // The pool tests what is returned, but without a limit: a connection to a server that is
        // gone without a sign would keep its place until TCP gives up, a quarter of an hour later.
        // So it is tested twice.
        .after_release(|connection, _| {
            Box::pin(async {
                match tokio::time::timeout(TEST_TIMEOUT, connection.ping()).await {
                    Ok(tested) => tested.map(|()| true),
                    Err(_elapsed) => Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())),
                }
            })
        })
        // A round trip per acquire; a broken connection shows at the next statement anyway.
        .test_before_acquire(false)
        .connect_lazy_with(options);
    Ok(pool)
}

const START_DELAY_MAX: Duration = Duration::from_secs(1);

fn start_delays() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(START_DELAY_MAX)
        .without_max_times()
}

/// The server is away, or the role or the database does not exist yet: an operator of PostgreSQL
/// makes them after the services have been started, and the server does not tell that from a wrong
/// password. Or the role has no rights yet: the task `migrate` grants them.
fn may_come_up(error: &sqlx::Error) -> bool {
    is_away(error) || has_code(error, &["28000", "28P01", "3D000", "42501"])
}

/// The server does not respond, ends or starts, or has no place for one more connection.
fn is_away(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::PoolTimedOut
    ) || has_code(error, &["57P01", "57P02", "57P03", "53300"])
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| codes.contains(&&*code))
}

/// For readiness: whether the database answers.
///
/// # Errors
/// Describes what is wrong.
pub async fn ping(pool: PgPool) -> Result<(), String> {
    let ping = sqlx::query("-- ping\nSELECT 1").execute(&pool);
    match tokio::time::timeout(ACQUIRE_TIMEOUT, ping).await {
        Ok(pinged) => pinged.map(drop).map_err(|error| error.to_string()),
        Err(_elapsed) => Err("the database does not respond".to_owned()),
    }
}
