//! Admission control: new orders are refused while accepted ones wait for too long, or while the
//! broker could not keep what fails.
//!
//! An order that is accepted although nothing moves is charged just before its deadline, cancelled,
//! and refunded: wasted work, and no sale. Refusing at the edge keeps the orders
//! that are accepted within their deadlines.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chassis::ticks;
use messaging::{Participant, in_time};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_millis(500);
/// Orders that must wait for too long before new ones are refused. A few that wait for an answer of
/// the provider are no overload.
const MANY: i64 = 64;

/// How far back late orders are counted.
const OVERDUE: Duration = Duration::from_secs(60);

/// Whether new orders are admitted; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    closed: Arc<AtomicBool>,
}

impl Admission {
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Observes the orders in flight, and the room that the broker has left, until `stopping`. An
    /// order waits for too long when a third of `deadline` has passed: the rest must suffice for
    /// its payment and its reservation.
    pub async fn run(
        self,
        participant: Participant,
        deadline: Duration,
        stopping: CancellationToken,
    ) -> anyhow::Result<()> {
        let left = deadline.mul_f64(2.0 / 3.0);
        let mut ticks = ticks(INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stopping.cancelled() => return Ok(()),
            }
            let late = async { Ok(late(&participant.pool, left).await?) };
            match in_time(late).await {
                Ok(late) => self.observe(late, participant.storage.is_nearly_full()),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "orders in flight cannot be counted; admission stays as it is"
                ),
            }
        }
    }

    fn observe(&self, late: i64, broker_is_full: bool) {
        let closed = late >= MANY || broker_is_full;
        if self.closed.swap(closed, Ordering::Relaxed) == closed {
            return;
        }
        if closed {
            tracing::warn!(
                late,
                broker_is_full,
                "new orders are refused until accepted ones move and the broker has room"
            );
        } else {
            tracing::info!("accepted orders move and the broker has room; new orders are admitted");
        }
    }
}

/// How many orders in flight have less than `left` until their deadline; at most [`MANY`].
async fn late(pool: &PgPool, left: Duration) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"-- orders_late
        SELECT count(*) AS "late!" FROM (
            SELECT FROM orders
            WHERE status IN ('pending', 'paid') AND deadline < now() + make_interval(secs => $1)
              AND deadline > now() - make_interval(secs => $3)
            ORDER BY deadline LIMIT $2) AS late"#,
        left.as_secs_f64(),
        MANY,
        // Not from the beginning: see `Lookback`. Orders that are overdue for longer wait for the
        // sweep.
        OVERDUE.as_secs_f64()
    )
    .fetch_one(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_late_orders_close_admission_and_a_few_do_not() {
        let admission = Admission::default();
        for (late, closed) in [(0, false), (MANY - 1, false), (MANY, true), (3, false)] {
            admission.observe(late, false);
            assert_eq!(admission.is_closed(), closed, "{late}");
        }
        admission.observe(0, true);
        assert!(admission.is_closed(), "the broker is full");
    }
}
