//! Reads the outbox in order, without missing an event that is committed late.
//!
//! A row gets its position when it is written, and becomes visible when its transaction commits. So
//! position 11 may be visible before position 10. The tail passes such a gap, remembers it, and
//! looks into it at each read. A gap stays empty for good when the transaction that took the
//! position was rolled back. To know that, the tail looks at who may still fill it: a transaction
//! that appends holds a lock on the table from before it takes a position until it ends.
//!
//! A horizon of transaction ids (`pg_snapshot_xmin`) would be simpler, but it belongs to the whole
//! server: one long transaction in any database, such as a lock that somebody forgot, would stop
//! the relays of all services.

use std::{
    collections::HashSet,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use sqlx::PgConnection;

use crate::outbox::{Recorded, Row};

/// How long a gap stays open before the tail looks at who may fill it. Nearly all are filled by
/// then.
const GAP_GRACE: Duration = Duration::from_secs(1);

/// A place in the outbox.
#[derive(Debug)]
pub(crate) struct Tail {
    /// The highest position that was read.
    head: i64,
    /// What was not visible below it, in order.
    gaps: Vec<Gap>,
}

#[derive(Clone, Debug)]
struct Gap {
    positions: RangeInclusive<i64>,
    passed_at: Instant,
    /// The transactions that may fill it, once the tail has asked.
    writers: Option<HashSet<String>>,
}

impl Tail {
    /// A tail that has read everything up to `position`.
    pub(crate) fn after(position: i64) -> Self {
        Self {
            head: position,
            gaps: Vec::new(),
        }
    }

    /// The position up to which nothing is missing.
    pub(crate) fn complete_up_to(&self) -> i64 {
        self.gaps
            .first()
            .map_or(self.head, |gap| gap.positions.start() - 1)
    }

    /// The highest position that was read.
    pub(crate) fn head(&self) -> i64 {
        self.head
    }

    /// The next events by position: at most `limit` beyond the head, and those in gaps.
    ///
    /// # Errors
    /// Those of the database; the tail is then where it was.
    pub(crate) async fn read(
        &mut self,
        connection: &mut PgConnection,
        limit: i64,
    ) -> sqlx::Result<Vec<Recorded>> {
        // Before the read: who is not there any more has committed what this read then sees.
        self.ask_for_writers(connection).await?;
        let (firsts, lasts): (Vec<i64>, Vec<i64>) = self
            .gaps
            .iter()
            .map(|gap| (*gap.positions.start(), *gap.positions.end()))
            .unzip();
        let rows = sqlx::query_as!(
            Row,
            r#"-- outbox_read
            SELECT position AS "position!", event_id AS "event_id!", subject AS "subject!",
                   order_id AS "order_id!", payload AS "payload!", correlation_id AS "correlation_id!",
                   causation_id AS "causation_id!", traceparent, recorded_at AS "recorded_at!"
            FROM (
                (SELECT position, event_id, subject, order_id, payload, correlation_id, causation_id, traceparent,
                        recorded_at
                 FROM outbox WHERE position > $1 ORDER BY position LIMIT $2)
                UNION ALL
                (SELECT position, event_id, subject, order_id, payload, correlation_id, causation_id, traceparent,
                        recorded_at
                 FROM unnest($3::bigint[], $4::bigint[]) AS gap (first, last)
                 JOIN outbox ON position BETWEEN gap.first AND gap.last)
            ) AS unread
            ORDER BY 1"#,
            self.head,
            limit,
            &firsts,
            &lasts
        )
        .fetch_all(connection)
        .await?;
        for row in &rows {
            self.pass(row.position);
        }
        self.gaps
            .retain(|gap| !gap.writers.as_ref().is_some_and(HashSet::is_empty));
        Ok(rows.into_iter().map(Recorded::from).collect())
    }

    fn pass(&mut self, position: i64) {
        if position <= self.head {
            self.fill(position);
            return;
        }
        if position > self.head + 1 {
            self.gaps.push(Gap {
                positions: self.head + 1..=position - 1,
                passed_at: Instant::now(),
                writers: None,
            });
        }
        self.head = position;
    }

    fn fill(&mut self, position: i64) {
        let holds = |gap: &Gap| gap.positions.contains(&position);
        let Some(index) = self.gaps.iter().position(holds) else {
            return;
        };
        let gap = self.gaps.remove(index);
        let (first, last) = (*gap.positions.start(), *gap.positions.end());
        let rest = [first..=position - 1, position + 1..=last];
        let rest = rest.into_iter().filter(|positions| !positions.is_empty());
        let rest = rest.map(|positions| Gap {
            positions,
            ..gap.clone()
        });
        self.gaps.splice(index..index, rest.collect::<Vec<_>>());
    }

    async fn ask_for_writers(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let is_old = |gap: &&mut Gap| gap.passed_at.elapsed() >= GAP_GRACE;
        let mut old = self.gaps.iter_mut().filter(is_old).peekable();
        if old.peek().is_none() {
            return Ok(());
        }
        let writers: HashSet<String> = sqlx::query_scalar!(
            r#"-- outbox_writers
            SELECT DISTINCT virtualtransaction AS "transaction!" FROM pg_locks
            WHERE locktype = 'relation' AND relation = 'outbox'::regclass AND mode = 'RowExclusiveLock'
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"#
        )
        .fetch_all(connection)
        .await?
        .into_iter()
        .collect();
        for gap in old {
            match &mut gap.writers {
                None => gap.writers = Some(writers.clone()),
                // Transactions that began after the gap was passed cannot fill it.
                Some(before) => before.retain(|writer| writers.contains(writer)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(tail: &Tail) -> Vec<RangeInclusive<i64>> {
        tail.gaps.iter().map(|gap| gap.positions.clone()).collect()
    }

    #[test]
    fn what_is_passed_is_a_gap_until_it_is_filled() {
        let mut tail = Tail::after(10);
        for position in [11, 15, 18] {
            tail.pass(position);
        }
        assert_eq!(open(&tail), [12..=14, 16..=17]);
        assert_eq!((tail.complete_up_to(), tail.head()), (11, 18));
        tail.pass(13);
        assert_eq!(open(&tail), [12..=12, 14..=14, 16..=17]);
        for position in [12, 16, 14, 17] {
            tail.pass(position);
        }
        assert!(open(&tail).is_empty());
        assert_eq!(tail.complete_up_to(), 18);
    }
}
