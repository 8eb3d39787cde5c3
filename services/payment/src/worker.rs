//! Calls the provider: leases payments that are due, calls, and records outcome and event in one
//! transaction.
//!
//! No database transaction is open during a call: a slow provider would hold locks and connections. A
//! worker that dies leaves its leases to expire; the next call uses the same idempotency key and gets
//! the same response.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use contracts::{OrderId, PaymentId};
use messaging::{Participant, UnitOfWork, backoff};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Command, Payment, Status},
    provider::{Provider, ProviderOutcome},
    store,
};

/// Most calls in flight. Bounds what a slow provider can hold in memory.
const MAX_CALLS: usize = 64;
/// Longer than any call takes, with its timeout: a lease that expires during the call would let a second
/// worker make the same call.
const LEASE: Duration = Duration::from_secs(15);
/// How often to look for due payments without a wake-up: retries, and leases of workers that died.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const SLOWEST_RETRY: Duration = Duration::from_secs(30);
/// Stripe forgets idempotency keys after 24 hours
/// (<https://docs.stripe.com/api/idempotent_requests>): a call after that would charge a second time.
const KEY_RETENTION: Duration = Duration::from_secs(23 * 3600);

/// The worker of one process; any number of replicas may run.
pub struct Worker {
    participant: Participant,
    provider: Provider,
    /// Notified when a payment may be due: after a handler's commit, and after an outcome that requests
    /// a refund.
    work: Arc<Notify>,
}

type Calls = JoinSet<(Payment, ProviderOutcome)>;

impl Worker {
    pub fn new(participant: Participant, provider: Provider) -> Self {
        Self {
            participant,
            provider,
            work: Arc::default(),
        }
    }

    /// Wakes the worker when a payment may be due.
    pub fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.work)
    }

    /// Works until `stopping`, then waits for the calls in flight and records their outcomes.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let mut calls = Calls::new();
        let mut may_be_due = true;
        while !stopping.is_cancelled() {
            if may_be_due {
                may_be_due = self.lease(&mut calls).await;
            }
            tokio::select! {
                Some(first) = completed(&mut calls) => {
                    self.record(&mut calls, first).await;
                    // A call has ended, so there is room for another.
                    may_be_due = true;
                }
                () = self.work.notified() => may_be_due = true,
                () = tokio::time::sleep(POLL_INTERVAL) => may_be_due = true,
                () = stopping.cancelled() => {}
            }
        }
        // An outcome that is not recorded would have to be asked for again after its lease.
        while let Some(first) = completed(&mut calls).await {
            self.record(&mut calls, first).await;
        }
        Ok(())
    }

    /// Leases due payments and starts their calls; returns whether more may be due.
    async fn lease(&self, calls: &mut Calls) -> bool {
        let free = MAX_CALLS.saturating_sub(calls.len());
        let room = self.provider.breaker.admits(free);
        if room == 0 {
            return false;
        }
        // Committed before the call: `attempts` counts calls that may have reached the provider.
        let leased = store::lease(&self.participant.pool, room as i64, LEASE).await;
        let leased = match leased {
            Ok(leased) => leased,
            Err(error) => {
                tracing::warn!(%error, "payments cannot be leased; the worker retries in {POLL_INTERVAL:?}");
                return false;
            }
        };
        let may_be_more = leased.len() == room;
        for payment in leased {
            let provider = self.provider.clone();
            calls.spawn(async move {
                let outcome = call(&provider, &payment).await;
                (payment, outcome)
            });
        }
        may_be_more
    }

    /// Records an outcome and all others that have arrived by now, in one transaction.
    async fn record(&self, calls: &mut Calls, first: (Payment, ProviderOutcome)) {
        let mut outcomes = vec![first];
        while let Some(Ok(next)) = calls.try_join_next() {
            outcomes.push(next);
        }
        if let Err(error) = self.transaction(&outcomes).await {
            tracing::warn!(
                error = format!("{error:#}"),
                outcomes = outcomes.len(),
                "outcomes could not be recorded; the calls are repeated with the same keys in {LEASE:?}"
            );
        }
    }

    async fn transaction(&self, outcomes: &[(Payment, ProviderOutcome)]) -> anyhow::Result<()> {
        let ids: Vec<OrderId> = outcomes
            .iter()
            .map(|(called, _)| called.identity.order_id)
            .collect();
        let mut tx = self.participant.pool.begin().await.context("begin")?;
        let locked = store::lock(&mut tx, &ids).await;
        let mut work = UnitOfWork::new(locked.context("lock payments")?);
        let mut later = Vec::new();
        for (called, outcome) in outcomes {
            let (order_id, payment_id) = (called.identity.order_id, called.identity.payment_id);
            let command = match outcome {
                ProviderOutcome::Captured { reference } => Command::RecordCapture {
                    reference: reference.clone(),
                },
                ProviderOutcome::Declined { code } => Command::RecordDecline { code: code.clone() },
                ProviderOutcome::Refunded => Command::RecordRefund,
                ProviderOutcome::Unknown { reason } => {
                    let attempts = u32::try_from(called.attempts).unwrap_or_default();
                    let delay = backoff::delay_after(attempts, FIRST_RETRY, SLOWEST_RETRY);
                    tracing::warn!(order.id = %order_id, payment.id = %payment_id, attempts, reason,
                        "the outcome at the provider is unknown; the call is repeated in {delay:?}");
                    later.push((order_id, delay));
                    continue;
                }
            };
            // A refund follows from the cancellation, everything else from the order's creation.
            let charged = called.charge.as_ref().map(|charge| &charge.cause);
            let cause = match outcome {
                ProviderOutcome::Refunded => called.cancelled.as_ref(),
                _ => charged,
            };
            let cause = cause.context("a leased payment has a cause")?;
            if let Err(error) = work.execute(order_id, command, cause) {
                tracing::error!(order.id = %order_id, payment.id = %payment_id, %error,
                    "the provider contradicts the payment; the payment stays as it is");
            }
        }
        work.flush(&mut tx).await.context("save payments")?;
        store::postpone(&mut tx, &later)
            .await
            .context("postpone retries")?;
        tx.commit().await.context("commit")?;
        self.participant.wake.wake();
        let refund_due = |id: &OrderId| {
            work.get(*id)
                .is_some_and(|payment| payment.status == Status::Refunding)
        };
        if ids.iter().any(refund_due) {
            self.work.notify_one();
        }
        Ok(())
    }
}

/// The next outcome; pending while no call is in flight.
async fn completed(calls: &mut Calls) -> Option<(Payment, ProviderOutcome)> {
    // A call that panicked is a bug that the panic hook has reported; its lease expires.
    loop {
        if let Ok(outcome) = calls.join_next().await? {
            return Some(outcome);
        }
    }
}

/// Makes the call that a leased payment needs.
async fn call(provider: &Provider, payment: &Payment) -> ProviderOutcome {
    let payment_id = payment.identity.payment_id;
    match (payment.status, &payment.charge, &payment.reference) {
        (Status::Refunding, _, Some(reference)) => provider.refund(payment_id, reference).await,
        // The first attempt has no key that could have been forgotten.
        (Status::Pending, Some(_), _)
            if payment.attempts > 1 && age(payment_id) > KEY_RETENTION =>
        {
            let reason = "the first call was so long ago that the provider may have forgotten the key \
                          and would charge again; look there for a payment with this order.id in its \
                          metadata and resolve it by hand";
            ProviderOutcome::Unknown {
                reason: reason.to_owned(),
            }
        }
        (Status::Pending, Some(charge), _) => {
            provider
                .charge(payment_id, payment.identity.order_id, charge)
                .await
        }
        // The constraints of the table exclude this.
        (status, ..) => ProviderOutcome::Unknown {
            reason: format!("a payment that is {status} needs no call"),
        },
    }
}

/// How long ago the payment was created: its id, a UUIDv7, contains the time.
fn age(payment: PaymentId) -> Duration {
    let created = payment.0.get_timestamp().map(|created| created.to_unix());
    let created = created.map(|(seconds, nanos)| Duration::new(seconds, nanos));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default()
        .saturating_sub(created.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use contracts::{Cause, CorrelationId, CustomerId, EventId, Money};
    use time::OffsetDateTime;
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;
    use crate::domain::{Charge, Identity};

    fn pending(created: SystemTime, attempts: i32) -> Payment {
        let created = created.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let created = Timestamp::from_unix(NoContext, created.as_secs(), created.subsec_nanos());
        let cause = Cause {
            correlation_id: CorrelationId::new(),
            causation_id: EventId::new(),
            traceparent: None,
        };
        Payment {
            identity: Identity {
                payment_id: PaymentId(Uuid::new_v7(created)),
                order_id: OrderId::new(),
                customer_id: CustomerId::new(),
            },
            charge: Some(Charge {
                amount: Money::new(1, "EUR".parse().unwrap()),
                method: "tok_visa".parse().unwrap(),
                lines: vec![],
                deadline: None,
                cause,
            }),
            status: Status::Pending,
            cancelled: None,
            attempts,
            reference: None,
            failure_code: None,
            updated_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_charge_is_not_retried_after_the_provider_may_have_forgotten_its_key() {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let nowhere = Provider::new("http://127.0.0.1:1", "sk_test_nobody".to_owned().into());
        let nowhere = nowhere.unwrap();
        let is_called =
            async |created, attempts| match call(&nowhere, &pending(created, attempts)).await {
                ProviderOutcome::Unknown { reason } => !reason.contains("forgotten"),
                other => panic!("{other:?}"),
            };
        let now = SystemTime::now();
        let yesterday = now.checked_sub(Duration::from_secs(24 * 3600)).unwrap();
        assert!(is_called(now, 1).await && is_called(now, 9).await);
        assert!(
            is_called(yesterday, 1).await,
            "the first call has no key to forget"
        );
        assert!(!is_called(yesterday, 2).await);
    }
}
