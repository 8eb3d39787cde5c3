//! Outbox and inbox are partitioned by time: what is old is dropped with its table.
//!
//! Dropping a partition costs the same however many rows it has, and leaves nothing behind for
//! VACUUM. The partitions of the next days are made ahead of time. Rows that have no partition are
//! in the default partition: those from before the first one, and events with a wrong clock. They
//! are deleted in steps along their key.
//!
//! Functions of the database make and drop them, with the rights of the owner of the tables: the
//! role of the service may neither create nor drop one (migration 5). Both changes need a lock on
//! the table for a moment. They give way to a longer use of it, such as a backup, and are tried
//! again a minute later.

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use sqlx::{AssertSqlSafe, Executor as _, PgPool, PgTransaction};
use time::{Date, Month, UtcOffset};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::topology::STREAM_MAX_AGE;

const INTERVAL: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How many days have their partition before they begin.
const AHEAD: u32 = 3;
/// Rows per deletion, so that none holds many locks for long.
const STEP: i64 = 10_000;
/// How long a change waits for its lock; everybody else waits behind it.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// PostgreSQL looks through the default partition for rows that belong to a new one.
const SCAN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one part of the upkeep may take. What is left is done at the next attempt.
const LIMIT: Duration = SCAN_TIMEOUT.saturating_mul(2);
/// One replica at a time: any number, the same for all versions.
const LOCK: i64 = 0x5a6a_0b0d;

/// How long published events stay in an outbox: for as long as a service may be away and still get
/// what it has missed, and for timelines.
pub(crate) const OUTBOX_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Inboxes remember an event for longer than it can be published again and delivered.
const INBOX_RETENTION: Duration = OUTBOX_RETENTION.saturating_add(STREAM_MAX_AGE);

/// A table that is partitioned by day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Outbox,
    Inbox,
}

/// Makes and drops partitions until `shutdown`. `outbox_retention` is how long published events
/// stay; `None` keeps them without end.
pub(crate) async fn run(
    pool: PgPool,
    outbox_retention: Option<Duration>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut deleted = Deleted::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = maintain(&pool, outbox_retention, &mut deleted) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn maintain(pool: &PgPool, outbox_retention: Option<Duration>, deleted: &mut Deleted) {
    attempt("delete old rows", deleted.step_all(pool, outbox_retention)).await;
    let mut tables = vec![(Table::Inbox, INBOX_RETENTION)];
    tables.extend(outbox_retention.map(|keep| (Table::Outbox, keep)));
    for (table, keep) in tables {
        attempt("drop old partitions", drop_old(pool, table, keep)).await;
        attempt("make partitions", create_ahead(pool, table)).await;
    }
}

/// Attempts one part of the upkeep. The others do not depend on its success.
async fn attempt(what: &str, part: impl Future<Output = sqlx::Result<()>>) {
    let error = match tokio::time::timeout(LIMIT, part).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
        Err(_elapsed) => format!("not finished after {LIMIT:?}"),
    };
    tracing::warn!(
        error,
        "could not {what} of outbox or inbox; the next attempt is in {INTERVAL:?}"
    );
}

async fn drop_old(pool: &PgPool, table: Table, keep: Duration) -> sqlx::Result<()> {
    let today = today(pool).await?;
    for (partition, day) in partitions(pool, table).await? {
        if day + DAY + keep < today {
            drop_partition(pool, table, day, &partition).await?;
        }
    }
    Ok(())
}

async fn create_ahead(pool: &PgPool, table: Table) -> sqlx::Result<()> {
    let today = today(pool).await?;
    // At the first start the default partition is empty. Later it may have rows of today:
    // PostgreSQL would look through all of it, and refuse.
    let has_today = exists(pool, &table.partition(today)).await?;
    let first = u32::from(has_today || !default_is_empty(pool, table).await.unwrap_or(false));
    for days in first..=AHEAD {
        create(pool, table, today + DAY * days).await?;
    }
    Ok(())
}

/// The day by the database's clock.
async fn today(pool: &PgPool) -> sqlx::Result<Date> {
    let now = sqlx::query_scalar!(
        r#"-- today
        SELECT now() AS "now!""#
    );
    Ok(now.fetch_one(pool).await?.to_offset(UtcOffset::UTC).date())
}

impl Table {
    const fn name(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Inbox => "inbox",
        }
    }

    /// `outbox_20261124`.
    fn partition(self, day: Date) -> String {
        let (year, month, day) = day.to_calendar_date();
        format!("{}_{year:04}{:02}{day:02}", self.name(), u8::from(month))
    }

    /// The day of a partition; `None` for the default one.
    fn day(self, partition: &str) -> Option<Date> {
        let digits = partition.strip_prefix(self.name())?.strip_prefix('_')?;
        let number = |range: Range<usize>| digits.get(range)?.parse::<u16>().ok();
        let month = Month::try_from(u8::try_from(number(4..6)?).ok()?).ok()?;
        let day = u8::try_from(number(6..8)?).ok()?;
        Date::from_calendar_date(number(0..4)?.into(), month, day).ok()
    }
}

async fn create(pool: &PgPool, table: Table, day: Date) -> sqlx::Result<()> {
    let partition = table.partition(day);
    if exists(pool, &partition).await? {
        return Ok(());
    }
    let Some(mut tx) = begin(pool).await? else {
        return Ok(());
    };
    let made = sqlx::query!(
        r#"-- partition_make
        SELECT FROM make_partition($1, $2)"#,
        table.name(),
        day
    )
    .execute(&mut *tx)
    .await;
    if give_way(made, &partition, "made")?.is_some() {
        tx.commit().await?;
        tracing::info!(partition, "a partition was made");
    }
    Ok(())
}

/// Drops a partition, unless somebody may still need an event in it.
async fn drop_partition(
    pool: &PgPool,
    table: Table,
    day: Date,
    partition: &str,
) -> sqlx::Result<()> {
    let Some(mut tx) = begin(pool).await? else {
        return Ok(());
    };
    let dropped = sqlx::query_scalar!(
        r#"-- partition_drop
        SELECT drop_partition($1, $2) AS "dropped!""#,
        table.name(),
        day
    )
    .fetch_one(&mut *tx)
    .await;
    match give_way(dropped, partition, "dropped")? {
        Some(true) => {
            tx.commit().await?;
            tracing::info!(partition, "a partition was dropped");
        }
        Some(false) => tracing::warn!(
            partition,
            "a partition of the outbox has events that a subscriber has not handled, or that are \
             set aside; it is kept until they are handled, or deleted from outbox_set_aside"
        ),
        None => {}
    }
    Ok(())
}

/// Begins a change that gives way to a longer use of the tables; `None` while another replica makes
/// one.
async fn begin(pool: &PgPool) -> sqlx::Result<Option<PgTransaction<'static>>> {
    let limits = format!(
        "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}",
        LOCK_TIMEOUT.as_millis(),
        SCAN_TIMEOUT.as_millis()
    );
    let mut tx = pool.begin().await?;
    tx.execute(AssertSqlSafe(limits)).await?;
    let mine = sqlx::query_scalar!(
        r#"-- partitions_lock
        SELECT pg_try_advisory_xact_lock($1) AS "locked!""#,
        LOCK
    );
    let is_mine = mine.fetch_one(&mut *tx).await?;
    Ok(is_mine.then_some(tx))
}

/// `None` for a lock that is not free, a table that another replica has made or dropped meanwhile,
/// and rows of that day in the default partition, which then keeps them.
fn give_way<T>(changed: sqlx::Result<T>, partition: &str, done: &str) -> sqlx::Result<Option<T>> {
    let code = |error: &sqlx::Error| Some(error.as_database_error()?.code()?.into_owned());
    match changed {
        Ok(changed) => Ok(Some(changed)),
        Err(error)
            if code(&error)
                .is_some_and(|code| matches!(&*code, "55P03" | "42P07" | "42P01" | "23514")) =>
        {
            tracing::debug!(partition, %error,
                "a partition could not be {done}; the next attempt is in {INTERVAL:?}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn exists(pool: &PgPool, table: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"-- partition_exists
        SELECT to_regclass($1) IS NOT NULL AS "exists!""#,
        table
    )
    .fetch_one(pool)
    .await
}

async fn default_is_empty(pool: &PgPool, table: Table) -> sqlx::Result<bool> {
    let is_empty = match table {
        Table::Outbox => sqlx::query_scalar!(
            r#"-- outbox_default_empty
            SELECT NOT EXISTS (SELECT FROM outbox_default) AS "empty!""#
        )
        .fetch_one(pool),
        Table::Inbox => sqlx::query_scalar!(
            r#"-- inbox_default_empty
            SELECT NOT EXISTS (SELECT FROM inbox_default) AS "empty!""#
        )
        .fetch_one(pool),
    };
    is_empty.await
}

/// All partitions but the default one, with their days.
async fn partitions(pool: &PgPool, table: Table) -> sqlx::Result<Vec<(String, Date)>> {
    let names = sqlx::query_scalar!(
        r#"-- partitions
        SELECT relname::text AS "name!" FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = to_regclass($1)"#,
        table.name()
    )
    .fetch_all(pool)
    .await?;
    let days = names.into_iter();
    let days = days.filter_map(|name| table.day(&name).map(|day| (name, day)));
    Ok(days.collect())
}

/// What has been deleted from the default partitions. The next step begins there: a snapshot that
/// is held for long keeps deleted rows, and a step would read all of them again.
#[derive(Default)]
struct Deleted {
    outbox: i64,
    inbox: Uuid,
}

impl Deleted {
    async fn step_all(
        &mut self,
        pool: &PgPool,
        outbox_retention: Option<Duration>,
    ) -> sqlx::Result<()> {
        let steps = async {
            while self.step_inbox(pool).await? == STEP as u64 {}
            if let Some(keep) = outbox_retention {
                while self.step_outbox(pool, keep).await? == STEP as u64 {}
            }
            Ok(())
        };
        let done = steps.await;
        // After a failover the database may have again what was deleted.
        if done.is_err() {
            *self = Self::default();
        }
        done
    }

    async fn step_inbox(&mut self, pool: &PgPool) -> sqlx::Result<u64> {
        let done = sqlx::query_scalar!(
            r#"-- inbox_prune
            DELETE FROM inbox_default WHERE event_id IN (
                SELECT event_id FROM inbox_default
                WHERE event_id > $1 AND event_id < $2 AND received_at < now() - make_interval(secs => $3)
                ORDER BY event_id LIMIT $4)
            RETURNING event_id"#,
            self.inbox,
            oldest_id(INBOX_RETENTION),
            INBOX_RETENTION.as_secs_f64(),
            STEP
        )
        .fetch_all(pool)
        .await?;
        self.inbox = done.iter().copied().max().unwrap_or(self.inbox);
        Ok(done.len() as u64)
    }

    async fn step_outbox(&mut self, pool: &PgPool, keep: Duration) -> sqlx::Result<u64> {
        let done = sqlx::query_scalar!(
            r#"-- outbox_prune
            DELETE FROM outbox_default WHERE position IN (
                SELECT position FROM (
                    SELECT position, recorded_at FROM outbox_default
                    WHERE position > $1 AND position NOT IN (SELECT position FROM outbox_set_aside)
                      AND position <= (SELECT position FROM outbox_checkpoint ORDER BY id LIMIT 1)
                    ORDER BY position LIMIT $3) AS oldest
                WHERE recorded_at < now() - make_interval(secs => $2))
            RETURNING position"#,
            self.outbox,
            keep.as_secs_f64(),
            STEP
        )
        .fetch_all(pool)
        .await?;
        self.outbox = done.iter().copied().max().unwrap_or(self.outbox);
        Ok(done.len() as u64)
    }
}

/// The smallest UUIDv7 of a time that is `age` ago: ids below it are older.
pub fn oldest_id(age: Duration) -> Uuid {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let time = now.unwrap_or_default().saturating_sub(age);
    let millis = u64::try_from(time.as_millis()).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_its_day() {
        let day = Date::from_calendar_date(2026, Month::November, 5).unwrap();
        for table in [Table::Outbox, Table::Inbox] {
            assert_eq!(table.day(&table.partition(day)), Some(day));
            assert_eq!(table.day(&format!("{}_default", table.name())), None);
        }
        assert_eq!(Table::Outbox.partition(day), "outbox_20261105");
    }
}
