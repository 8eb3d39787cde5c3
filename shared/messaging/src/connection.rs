//! A connection that a task keeps between transactions.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::{Connection as _, PgPool, Postgres, pool::PoolConnection};

/// A kept connection that was idle for longer is tested: the server may have been restarted.
const TEST_AFTER: Duration = Duration::from_secs(1);
/// How long that may take. A server that is gone may not respond at all.
const TEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection of the pool for one task that runs transactions one after the other.
///
/// The pool tests a connection at each return and hands out the one that was idle for the longest
/// time. For an order that is alone, the tests are eight of 58 round trips.
/// [`PgPool::close`] waits until this is dropped.
#[derive(Debug)]
pub struct DedicatedConnection {
    pool: PgPool,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    connection: PoolConnection<Postgres>,
    since: Instant,
}

impl DedicatedConnection {
    /// Takes a connection from `pool` at the first transaction.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            kept: Mutex::default(),
        }
    }

    /// The connection that was put back, if it still works, else one of the pool.
    ///
    /// One that is not put back is closed: its transaction has failed, and the state of its session
    /// is unknown.
    ///
    /// # Errors
    /// Those of the pool.
    pub async fn take(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        let kept = self.kept.lock().take();
        if let Some(kept) = kept
            && let Some(connection) = kept.tested().await
        {
            return Ok(connection);
        }
        let mut connection = self.pool.acquire().await?;
        connection.close_on_drop();
        Ok(connection)
    }

    /// Keeps the connection. Only after the work has succeeded.
    pub fn put_back(&self, connection: PoolConnection<Postgres>) {
        *self.kept.lock() = Some(Kept {
            connection,
            since: Instant::now(),
        });
    }
}

impl Kept {
    /// `None` when the server does not respond any more.
    async fn tested(mut self) -> Option<PoolConnection<Postgres>> {
        if self.since.elapsed() > TEST_AFTER {
            let tested = tokio::time::timeout(TEST_TIMEOUT, self.connection.ping());
            tested.await.ok()?.ok()?;
        }
        Some(self.connection)
    }
}
