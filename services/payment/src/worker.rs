//! Talks to the provider: leases payments that are due, asks, and records answer and event in one
//! transaction.
//!
//! No database transaction is open while the provider is asked. A worker that dies leaves its
//! leases to run out; the question is then asked again with the same idempotency key and gets the
//! same answer.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use contracts::{OrderId, PaymentId};
use messaging::Node;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    decisions::Decisions,
    domain::{Command, Payment, Status},
    provider::{Answer, Provider},
    store,
};

/// Most questions in flight.
const IN_FLIGHT: usize = 64;
/// Longer than any question takes.
const LEASE: Duration = Duration::from_secs(15);
/// How often to look for what is due without having been woken.
const POLL: Duration = Duration::from_millis(500);
const SLOWEST_RETRY: Duration = Duration::from_secs(30);
/// Stripe forgets idempotency keys after 24 hours (<https://docs.stripe.com/api/idempotent_requests>): asked again then,
/// it would charge a second time.
const KEY_MEMORY: Duration = Duration::from_secs(23 * 3600);

/// The worker of one process; any number of replicas may run.
pub(crate) struct Worker {
    pub(crate) node: Node,
    pub(crate) provider: Provider,
    pub(crate) work: Arc<Notify>,
}

type Calls = JoinSet<(Payment, Answer)>;

impl Worker {
    /// Works until `shutdown`; then waits for the answers in flight and records them.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut calls = Calls::new();
        let mut more = true;
        while !shutdown.is_cancelled() {
            if more {
                more = self.lease(&mut calls).await;
            }
            tokio::select! {
                Some(first) = ready(&mut calls) => {
                    self.record(&mut calls, first).await;
                    more = true;
                }
                () = self.work.notified() => more = true,
                () = tokio::time::sleep(POLL) => more = true,
                () = shutdown.cancelled() => {}
            }
        }
        while let Some(first) = ready(&mut calls).await {
            self.record(&mut calls, first).await;
        }
        Ok(())
    }

    /// Takes what is due and asks; returns whether there may be more.
    async fn lease(&self, calls: &mut Calls) -> bool {
        let free = self.provider.breaker.admits(IN_FLIGHT - calls.len());
        if free == 0 {
            return false;
        }
        let leased = match store::lease(&self.node.pool, free as i64, LEASE).await {
            Ok(leased) => leased,
            Err(error) => {
                tracing::warn!(%error, "payments wait; the database does not answer");
                return false;
            }
        };
        let more = leased.len() == free;
        for payment in leased {
            let provider = self.provider.clone();
            calls.spawn(async move {
                let answer = ask(&provider, &payment).await;
                (payment, answer)
            });
        }
        more
    }

    /// Records an answer and all others that are there by now in one transaction.
    async fn record(&self, calls: &mut Calls, first: (Payment, Answer)) {
        let mut answers = vec![first];
        while let Some(Ok(next)) = calls.try_join_next() {
            answers.push(next);
        }
        if let Err(error) = self.transaction(&answers).await {
            // The leases run out and the provider is asked again, with the same keys.
            tracing::warn!(
                error = format!("{error:#}"),
                answers = answers.len(),
                "the answers could not be recorded"
            );
        }
    }

    async fn transaction(&self, answers: &[(Payment, Answer)]) -> anyhow::Result<()> {
        let orders: Vec<OrderId> = answers
            .iter()
            .map(|(payment, _)| payment.order_id)
            .collect();
        let mut tx = self.node.pool.begin().await.context("begin")?;
        let mut decisions = Decisions::on(
            store::lock(&mut tx, &orders)
                .await
                .context("lock payments")?,
        );
        let mut later = Vec::new();
        for (asked, answer) in answers {
            let command = match answer {
                Answer::Captured { reference } => Command::NoteCapture {
                    reference: reference.clone(),
                },
                Answer::Declined { code } => Command::NoteDecline { code: code.clone() },
                Answer::Refunded => Command::NoteRefund,
                Answer::Unknown { reason } => {
                    let delay = delay(asked.attempts);
                    tracing::warn!(order.id = %asked.order_id, payment.id = %asked.id, attempt = asked.attempts,
                        reason, ?delay, "the provider's answer is not known; asking again with the same key");
                    later.push((asked.order_id, delay));
                    continue;
                }
            };
            if let Err(error) = decisions.tell(asked.order_id, asked.customer_id, command) {
                tracing::error!(order.id = %asked.order_id, payment.id = %asked.id, %error, "the provider contradicts us");
            }
        }
        decisions.save(&mut tx).await?;
        store::postpone(&mut tx, &later).await.context("postpone")?;
        tx.commit().await.context("commit")?;
        self.node.wake.wake();
        let refund_due = |order: &OrderId| {
            decisions
                .payment(*order)
                .is_some_and(|p| p.status == Status::Refunding)
        };
        if orders.iter().any(refund_due) {
            self.work.notify_one();
        }
        Ok(())
    }
}

/// The next answer; never, while there are none.
async fn ready(calls: &mut Calls) -> Option<(Payment, Answer)> {
    // A call that panicked is a bug that the panic hook has reported; its lease runs out.
    loop {
        if let Ok(answer) = calls.join_next().await? {
            return Some(answer);
        }
    }
}

async fn ask(provider: &Provider, payment: &Payment) -> Answer {
    match (payment.status, &payment.charge, &payment.reference) {
        (Status::Refunding, _, Some(reference)) => provider.refund(payment.id, reference).await,
        (Status::Pending, Some(_), _) if payment.attempts > 1 && age(payment.id) > KEY_MEMORY => {
            let reason = "first asked so long ago that the provider may have forgotten the key and would charge again; \
                          look there for a payment with this order.id in its metadata and settle it by hand";
            Answer::Unknown {
                reason: reason.to_owned(),
            }
        }
        (Status::Pending, Some(charge), _) => {
            provider.charge(payment.id, payment.order_id, charge).await
        }
        // The table's constraints exclude this.
        _ => Answer::Unknown {
            reason: format!(
                "there is nothing to ask for a payment that is {:?}",
                payment.status
            ),
        },
    }
}

/// How long ago the payment was made: its id, a UUIDv7, says when.
fn age(payment: PaymentId) -> Duration {
    let made = payment
        .0
        .get_timestamp()
        .map(|made| made.to_unix())
        .map(|(seconds, nanos)| Duration::new(seconds, nanos));
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(made.unwrap_or_default())
}

/// 100 ms doubling with each attempt, up to [`SLOWEST_RETRY`], with jitter.
fn delay(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts - 1).unwrap_or(0).min(16);
    let delay = Duration::from_millis(100 << doublings).min(SLOWEST_RETRY);
    delay.mul_f64(rand::random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use contracts::{CorrelationId, CustomerId, EventId, Money};
    use messaging::outbox::Cause;
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;
    use crate::domain::Charge;

    #[tokio::test]
    async fn a_charge_is_not_asked_for_again_once_the_provider_may_have_forgotten_its_key() {
        let nowhere = Provider::new("http://127.0.0.1:1", "sk_test_nobody").unwrap();
        let amount = Money {
            amount: 1,
            currency: "EUR".to_owned(),
        };
        let cause = Cause {
            correlation_id: CorrelationId::new(),
            causation_id: EventId::new(),
            traceparent: None,
        };
        let charge = Charge {
            amount,
            method: "tok_visa".to_owned(),
            lines: vec![],
            cause,
        };
        let is_asked = async |made: SystemTime, attempts| {
            let made = made.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let id = PaymentId(Uuid::new_v7(Timestamp::from_unix(
                NoContext,
                made.as_secs(),
                made.subsec_nanos(),
            )));
            let payment = Payment::of(OrderId::new(), CustomerId::new());
            match ask(
                &nowhere,
                &Payment {
                    id,
                    attempts,
                    charge: Some(charge.clone()),
                    ..payment
                },
            )
            .await
            {
                Answer::Unknown { reason } => !reason.contains("forgotten"),
                other => panic!("{other:?}"),
            }
        };
        let now = SystemTime::now();
        let yesterday = now.checked_sub(Duration::from_secs(24 * 3600)).unwrap();
        assert!(is_asked(now, 1).await && is_asked(now, 9).await);
        assert!(
            is_asked(yesterday, 1).await,
            "it was never asked before: there is no key to forget"
        );
        assert!(!is_asked(yesterday, 2).await);
    }
}
