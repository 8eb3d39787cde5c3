//! The connection pool of a service and its migrations.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::{PgPool, migrate::Migrator, postgres::PgPoolOptions};

use crate::settings::DatabaseSettings;

/// No statement of ours takes long; one that does has gone wrong.
const STATEMENT_TIMEOUT: &str = "10s";
const LOCK_TIMEOUT: &str = "5s";
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects and migrates, in the order given. Waits for a server that is not up yet. Several
/// replicas may start at once: one migrates, the others wait for its lock.
///
/// # Errors
/// A wrong password or database, or a migration that fails.
pub async fn connect(
    settings: &DatabaseSettings,
    service: &str,
    migrators: &[Migrator],
) -> anyhow::Result<PgPool> {
    let options = settings.url.0.clone().application_name(service).options([
        ("statement_timeout", STATEMENT_TIMEOUT),
        ("lock_timeout", LOCK_TIMEOUT),
        ("idle_in_transaction_session_timeout", STATEMENT_TIMEOUT),
        // Every statement of ours has an index and few rows. A plan that is made while a table is
        // small, and then kept, must be right for a table that has grown: nested loops
        // over indexes, never a scan of everything.
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
    ]);
    let pool = PgPoolOptions::new()
        .max_connections(settings.pool_size)
        .min_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options);
    wait_until_up(&pool)
        .await
        .with_context(|| format!("DATABASE_URL ({:?})", settings.url))?;
    for migrator in migrators {
        migrator.run(&pool).await.context("migrate the database")?;
    }
    Ok(pool)
}

async fn wait_until_up(pool: &PgPool) -> sqlx::Result<()> {
    let mut wait = Duration::from_millis(50);
    loop {
        match pool.acquire().await {
            Ok(_) => return Ok(()),
            Err(error) if may_come_up(&error) => tracing::info!(%error, "waiting for PostgreSQL"),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    }
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
/// Says what is wrong.
pub async fn ping(pool: PgPool) -> Result<(), String> {
    sqlx::query("-- ping\nSELECT 1")
        .execute(&pool)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}
