//! The connection pool of a service and its migrations.

use std::time::Duration;

use anyhow::Context as _;
use backon::{ExponentialBuilder, Retryable as _};
use futures::future::BoxFuture;
use sqlx::{
    Connection as _, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::PgPoolOptions,
};

use crate::{settings::DatabaseSettings, shutdown};

const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// An index on a large table takes minutes.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(3600);

/// Connects and migrates, in the order given. Waits for a server that is not up yet. Several replicas
/// may start at once: one migrates, the others wait for its lock.
///
/// Boxed, so that the driver is compiled once, here, and not again in every service.
///
/// # Errors
/// A wrong password or database, or a migration that fails.
pub fn connect<'a>(
    settings: &'a DatabaseSettings,
    service: &'a str,
    migrators: Vec<Migrator>,
) -> BoxFuture<'a, anyhow::Result<PgPool>> {
    Box::pin(async move {
        let pool = pool(settings, service)?;
        let server = || async { pool.acquire().await.map(drop) };
        server
            .retry(start_delays())
            .when(may_come_up)
            .notify(|error, delay| {
                tracing::info!(%error, "PostgreSQL is unavailable; the next attempt is in {delay:?}");
            })
            .await
            .context("connect to the database that DATABASE_URL names")?;
        for mut migrator in migrators {
            // A newer version may have migrated before: its migrations only add, and this version
            // can still restart, and run after a roll-back.
            migrator.set_ignore_missing(true);
            migrate(&pool, &migrator)
                .await
                .context("migrate the database")?;
        }
        Ok(pool)
    })
}

/// Migrates on a connection with time limits of its own. A lock that is not free soon is tried
/// again, so that the migration does not queue in front of the traffic of the replicas that serve.
async fn migrate(pool: &PgPool, migrator: &Migrator) -> anyhow::Result<()> {
    let options = (*pool.connect_options()).clone().options([
        (
            "statement_timeout",
            MIGRATION_TIMEOUT.as_millis().to_string(),
        ),
        ("lock_timeout", LOCK_TIMEOUT.as_millis().to_string()),
    ]);
    let migrate = || async {
        let mut connection = PgConnection::connect_with(&options).await?;
        let migrated = migrator.run_direct(None, &mut connection, false).await;
        connection.close().await?;
        migrated
    };
    let migrated = migrate.retry(start_delays()).when(is_locked_out);
    let notified = migrated.notify(|error, delay| {
        tracing::info!(%error, "a migration waits for a lock; the next attempt is in {delay:?}");
    });
    Ok(notified.await?)
}

/// Another replica migrates, or a transaction uses the table (lock_not_available, deadlock_detected).
fn is_locked_out(error: &MigrateError) -> bool {
    let error = match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error,
        _ => return false,
    };
    let database = error.as_database_error();
    database.is_some_and(|error| {
        error
            .code()
            .is_some_and(|code| code == "55P03" || code == "40P01")
    })
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
        // kept, and must be right for a table that has grown: nested loops over indexes, never a scan
        // of the whole table (docs/decisions/0006-plans.md).
        ("enable_seqscan", "off".to_owned()),
        ("enable_hashjoin", "off".to_owned()),
        ("enable_mergejoin", "off".to_owned()),
    ]);
    let pool = PgPoolOptions::new()
        .max_connections(settings.pool_size)
        .min_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A round trip per acquire; a broken connection shows at the next statement anyway.
        .test_before_acquire(false)
        .connect_lazy_with(options);
    Ok(pool)
}

fn start_delays() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(1))
        .without_max_times()
}

fn may_come_up(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        // "the database system is starting up"
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code == "57P03"),
        _ => false,
    }
}

/// For readiness: whether the database answers.
///
/// # Errors
/// Describes what is wrong.
pub async fn ping(pool: PgPool) -> Result<(), String> {
    let ping = sqlx::query("-- ping\nSELECT 1").execute(&pool).await;
    ping.map(drop).map_err(|error| error.to_string())
}
