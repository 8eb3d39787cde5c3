//! Calls the provider: leases payments that are due, calls, and records outcome and event in one
//! transaction.
//!
//! No database transaction is open during a call: a slow provider would hold locks and connections.
//! Leases are short, and renewed during a call. Those of a worker that dies expire; the next call
//! uses the same idempotency key and gets the same response. What is called, and what follows from
//! it, is in `charge` and `refund`.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bootstrap::shutdown;
use chassis::ticks;
use contracts::{Cause, OrderId};
use messaging::{DedicatedConnection, Lookback, Participant, UnitOfWork, backoff};
use sqlx::Connection as _;
use tokio::{
    sync::Notify,
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    charge,
    domain::{Call, Command, Payment, Status},
    provider::{CALL_TIMEOUT, Provider, ProviderOutcome},
    refund,
    store::{self, Leased, Leases, NextCall, Reach, Room},
};

/// Most calls in flight. Bounds what a slow provider can hold in memory.
const MAX_CALLS: usize = 64;
/// How long the payments of a worker that has died wait for another one.
const LEASE: Duration = Duration::from_secs(3);
/// How often the leases of longer calls are renewed: one that expired would let a second worker
/// make the same call.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// How often to look for due payments without a wake-up: retries, and leases of workers that died.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const SLOWEST_RETRY: Duration = Duration::from_secs(30);
/// Refunds may be pending for days, and one that fails rarely succeeds within seconds.
const SLOWEST_REFUND: Duration = Duration::from_secs(600);
/// Refunds that failed one after the other before somebody has to look.
const FAILED_REFUNDS: i32 = 5;

/// While the circuit of one kind is open, the other one is looked at as usual.
#[derive(Default)]
struct Lookbacks {
    refunds: Lookback,
    charges: Lookback,
}

/// The worker of one process; any number of replicas may run.
pub struct Worker {
    participant: Participant,
    connection: DedicatedConnection,
    provider: Provider,
    /// Notified when a payment may be due: after a handler's commit, and after an outcome that
    /// requests a refund.
    work: Arc<Notify>,
}

/// The calls in flight.
#[derive(Default)]
struct InFlight {
    tasks: JoinSet<(Payment, ProviderOutcome)>,
    /// The order of each, and when its lease began.
    leases: HashMap<Id, (OrderId, Instant)>,
}

impl InFlight {
    fn spawn(&mut self, provider: Provider, leased: Leased, since: Instant) {
        let order = leased.payment.identity.order_id;
        let task = self.tasks.spawn(async move {
            let outcome = call(&provider, &leased, since).await;
            (leased.payment, outcome)
        });
        self.leases.insert(task.id(), (order, since));
    }

    /// The next outcome; `None` when no call is in flight.
    async fn next(&mut self) -> Option<(Payment, ProviderOutcome)> {
        loop {
            let ended = self.tasks.join_next_with_id().await?;
            if let Some(outcome) = self.note(ended) {
                return Some(outcome);
            }
        }
    }

    /// An outcome that has arrived.
    fn try_next(&mut self) -> Option<(Payment, ProviderOutcome)> {
        loop {
            let ended = self.tasks.try_join_next_with_id()?;
            if let Some(outcome) = self.note(ended) {
                return Some(outcome);
            }
        }
    }

    /// A call that panicked is a bug that the panic hook has reported; its lease expires.
    fn note<T>(&mut self, ended: Result<(Id, T), JoinError>) -> Option<T> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        self.leases.remove(&id);
        ended.ok().map(|(_, outcome)| outcome)
    }

    /// The orders of calls that take longer than usual.
    fn to_renew(&self) -> Vec<OrderId> {
        let leases = self.leases.values();
        let old = leases.filter(|(_, since)| since.elapsed() >= RENEW_INTERVAL);
        old.map(|(order, _)| *order).collect()
    }
}

impl Worker {
    pub fn new(participant: Participant, provider: Provider) -> Self {
        Self {
            connection: DedicatedConnection::new(participant.pool.clone()),
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
        if !shutdown::ends_in_time(self.work_until(&stopping), &stopping).await {
            tracing::warn!(
                "outcomes of the last calls could not be recorded; another worker repeats the \
                 calls with the same keys in {LEASE:?}"
            );
        }
        Ok(())
    }

    async fn work_until(&self, stopping: &CancellationToken) {
        let mut calls = InFlight::default();
        let mut renewals = ticks(RENEW_INTERVAL);
        let mut polls = ticks(POLL_INTERVAL);
        let mut lookback = Lookbacks::default();
        let mut may_be_due = true;
        while !stopping.is_cancelled() {
            // What is due while every place is taken waits for one.
            if may_be_due && calls.tasks.len() < MAX_CALLS {
                may_be_due = self.lease(&mut calls, &mut lookback).await;
            }
            tokio::select! {
                Some(first) = calls.next() => self.record(&mut calls, first).await,
                _ = renewals.tick() => self.renew(&calls).await,
                () = self.work.notified() => may_be_due = true,
                _ = polls.tick() => may_be_due = true,
                () = stopping.cancelled() => {}
            }
        }
        // An outcome that is not recorded would have to be asked for again after its lease.
        loop {
            tokio::select! {
                next = calls.next() => match next {
                    Some(first) => self.record(&mut calls, first).await,
                    None => return,
                },
                _ = renewals.tick() => self.renew(&calls).await,
            }
        }
    }

    /// A lease that is not renewed expires, and another worker makes the same call with the same
    /// key.
    async fn renew(&self, calls: &InFlight) {
        let orders = calls.to_renew();
        if orders.is_empty() {
            return;
        }
        if let Err(error) = messaging::in_time(self.renew_all(&orders)).await {
            tracing::warn!(
                error = format!("{error:#}"),
                leases = orders.len(),
                "leases could not be renewed; the next attempt is in {RENEW_INTERVAL:?}"
            );
        }
    }

    async fn renew_all(&self, orders: &[OrderId]) -> anyhow::Result<()> {
        let mut connection = self.connection.take().await.context("connect")?;
        store::renew(&mut connection, orders, LEASE).await?;
        self.connection.put_back(connection);
        Ok(())
    }

    /// Leases due payments and starts their calls; returns whether to look again at once.
    async fn lease(&self, calls: &mut InFlight, lookback: &mut Lookbacks) -> bool {
        let free = MAX_CALLS.saturating_sub(calls.tasks.len());
        let room = Room {
            all: free,
            refunds: self.provider.refunds.admits(free),
            charges: self.provider.charges.admits(free),
        };
        if room.refunds == 0 && room.charges == 0 {
            return false;
        }
        let since = Instant::now();
        let reach = Reach {
            refunds: lookback.refunds.reach(),
            charges: lookback.charges.reach(),
        };
        let leased = match messaging::in_time(self.lease_up_to(room, reach)).await {
            Ok(leased) => leased,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "payments cannot be leased; the worker retries in {POLL_INTERVAL:?}"
                );
                *lookback = Lookbacks::default();
                return false;
            }
        };
        let is_refund = |leased: &&Leased| leased.payment.status == Status::Refunding;
        let refunds = leased.payments.iter().filter(is_refund).count();
        let charges = leased.payments.len() - refunds;
        let room_for_charges = room.charges.min(free - refunds);
        if refunds < room.refunds && leased.are_complete {
            lookback.refunds.found_all(reach.refunds);
        }
        if charges < room_for_charges && leased.are_complete {
            lookback.charges.found_all(reach.charges);
        }
        // Of a kind without room none is leased now, however many are due.
        let may_be_more = !leased.are_complete
            || (refunds > 0 && refunds == room.refunds)
            || (charges > 0 && charges == room_for_charges);
        for leased in leased.payments {
            calls.spawn(self.provider.clone(), leased, since);
        }
        may_be_more
    }

    /// Committed before the calls: `attempts` counts calls that may have reached the provider, and
    /// a body that is sent is stored.
    async fn lease_up_to(&self, room: Room, reach: Reach) -> anyhow::Result<Leases> {
        let mut connection = self.connection.take().await.context("connect")?;
        let leased = store::lease(&mut connection, room, LEASE, reach).await?;
        // Only payments that a replica of the version before this one has written lack a body.
        let without = leased.payments.iter().map(|leased| &leased.payment);
        let bodies: Vec<_> = without.filter_map(charge::missing_body).collect();
        if !bodies.is_empty() {
            store::store_bodies(&mut connection, &bodies).await?;
        }
        self.connection.put_back(connection);
        Ok(leased)
    }

    /// Records an outcome and all others that have arrived by now, in one transaction.
    async fn record(&self, calls: &mut InFlight, first: (Payment, ProviderOutcome)) {
        let mut outcomes = vec![first];
        while let Some(next) = calls.try_next() {
            outcomes.push(next);
        }
        if let Err(error) = messaging::in_time(self.transaction(&outcomes)).await {
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
        let mut connection = self.connection.take().await.context("connect")?;
        let mut tx = connection.begin().await.context("begin")?;
        let locked = store::lock(&mut tx, &ids).await;
        let mut work = UnitOfWork::new(locked.context("lock payments")?);
        let mut next_calls = Vec::new();
        for (called, outcome) in outcomes {
            next_calls.extend(next_call(called, outcome));
            let Some((command, cause)) = command(called, outcome) else {
                continue;
            };
            let order_id = called.identity.order_id;
            let cause = cause.context("a leased payment has a cause")?;
            if let Err(error) = work.execute(order_id, command, cause) {
                tracing::error!(order.id = %order_id, payment.id = %called.identity.payment_id, %error,
                    "the provider contradicts the payment; the payment stays as it is");
            }
        }
        work.flush(&mut tx).await.context("save payments")?;
        store::postpone(&mut tx, &next_calls)
            .await
            .context("postpone retries")?;
        tx.commit().await.context("commit")?;
        self.connection.put_back(connection);
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

/// What an outcome means for the payment, and what it follows from: a refund from the cancellation,
/// everything else from the order's creation.
fn command<'a>(
    called: &'a Payment,
    outcome: &ProviderOutcome,
) -> Option<(Command, Option<&'a Cause>)> {
    let charged = called.charge.as_ref().map(|charge| &charge.cause);
    let cancelled = called.cancelled.as_ref();
    Some(match outcome {
        ProviderOutcome::Captured { reference } => {
            let reference = reference.clone();
            (Command::RecordCapture { reference }, charged)
        }
        ProviderOutcome::Declined { code } => {
            (Command::RecordDecline { code: code.clone() }, charged)
        }
        ProviderOutcome::NotCharged => (Command::RecordAbsence(called.last_call()), charged),
        ProviderOutcome::Refunded => (Command::RecordRefund, cancelled),
        ProviderOutcome::RefundPending { id } => {
            (Command::RecordPendingRefund { id: id.clone() }, cancelled)
        }
        ProviderOutcome::NotRefunded { .. } => {
            (Command::RecordFailedRefund(called.last_call()), cancelled)
        }
        ProviderOutcome::Unknown { .. } => return None,
    })
}

/// When the provider is called next, if the outcome leaves something to be called for. Logs why.
fn next_call(called: &Payment, outcome: &ProviderOutcome) -> Option<NextCall> {
    let Call {
        key_number,
        attempt,
    } = called.last_call();
    let slowest = match called.status {
        Status::Refunding => SLOWEST_REFUND,
        _ => SLOWEST_RETRY,
    };
    // A provider that fails under several keys in a row is called less and less often.
    let attempts = u32::try_from(attempt.saturating_add(key_number)).unwrap_or_default();
    let delay = backoff::delay_after(attempts, FIRST_RETRY, slowest);
    let (order_id, payment_id) = (called.identity.order_id, called.identity.payment_id);
    let is_over = match outcome {
        ProviderOutcome::Captured { .. }
        | ProviderOutcome::Declined { .. }
        | ProviderOutcome::Refunded => return None,
        ProviderOutcome::NotCharged => {
            tracing::warn!(order.id = %order_id, payment.id = %payment_id, attempts,
                "nothing was charged under this key; the next one is used in {delay:?}, unless it is too late");
            true
        }
        ProviderOutcome::RefundPending { id } => {
            tracing::info!(order.id = %order_id, payment.id = %payment_id, attempts, refund.id = id,
                "the refund is pending; the provider is asked for it again in {delay:?}");
            true
        }
        ProviderOutcome::NotRefunded { reason } if key_number >= FAILED_REFUNDS => {
            tracing::error!(order.id = %order_id, payment.id = %payment_id, attempts, reason,
                "refunds keep failing, look at the provider; the next one is asked for in {delay:?}");
            true
        }
        ProviderOutcome::NotRefunded { reason } => {
            tracing::warn!(order.id = %order_id, payment.id = %payment_id, attempts, reason,
                "the refund has failed; another one is asked for in {delay:?}");
            true
        }
        ProviderOutcome::Unknown { reason, is_over } => {
            tracing::warn!(order.id = %order_id, payment.id = %payment_id, attempts, reason,
                "the outcome at the provider is unknown; it is asked again in {delay:?}");
            *is_over
        }
    };
    Some(NextCall {
        order: called.identity.order_id,
        delay,
        answered_key: is_over.then_some(key_number),
    })
}

/// Makes the calls that a leased payment needs. `since`: when the lease was asked for.
async fn call(provider: &Provider, leased: &Leased, since: Instant) -> ProviderOutcome {
    let unknown = |reason: String, is_over| ProviderOutcome::Unknown { reason, is_over };
    // The process was paused: the lease has expired, and others go by what they can see.
    if since.elapsed() > LEASE {
        return unknown("the lease expired before the call".to_owned(), true);
    }
    let payment = &leased.payment;
    let calls = async {
        match (payment.status, &payment.charge, &payment.reference) {
            (Status::Refunding, Some(charge), Some(reference)) => {
                refund::call(provider, payment, reference, charge.amount).await
            }
            (Status::Pending, Some(charge), _) => charge::call(provider, leased, charge).await,
            // The constraints of the table exclude this.
            (status, ..) => unknown(format!("a payment that is {status} needs no call"), true),
        }
    };
    let outcome = tokio::time::timeout(CALL_TIMEOUT, calls).await;
    outcome.unwrap_or_else(|_| {
        let is_over = payment.status == Status::Pending && charge::only_searches(leased);
        unknown(format!("no result in {CALL_TIMEOUT:?}"), is_over)
    })
}
