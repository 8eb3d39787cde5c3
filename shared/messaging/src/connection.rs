//! A connection that a loop keeps from one transaction to the next.

use parking_lot::Mutex;
use sqlx::{PgPool, Postgres, pool::PoolConnection};

/// A connection of the pool for one loop of transactions.
///
/// The pool tests a connection at each return, which is one more round trip per transaction. And it
/// hands out the one that was idle for the longest time, whose server process is no longer in the
/// caches of the processor. An order that is alone takes a third longer with both.
#[derive(Debug)]
pub struct DedicatedConnection {
    pool: PgPool,
    idle: Mutex<Option<PoolConnection<Postgres>>>,
}

impl DedicatedConnection {
    /// Takes a connection from `pool` at the first transaction.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            idle: Mutex::default(),
        }
    }

    /// The connection that was put back, else one of the pool.
    ///
    /// # Errors
    /// Those of the pool.
    pub async fn take(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        let idle = self.idle.lock().take();
        match idle {
            Some(connection) => Ok(connection),
            None => self.pool.acquire().await,
        }
    }

    /// Keeps the connection for the next transaction. Only after a commit: one that is dropped
    /// because its transaction failed or was given up returns to the pool, which tests it.
    pub fn put_back(&self, connection: PoolConnection<Postgres>) {
        *self.idle.lock() = Some(connection);
    }
}
