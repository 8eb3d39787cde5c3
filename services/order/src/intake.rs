//! Accepts orders in batches (group commit): requests that arrive while one transaction is being
//! committed share the next.
//!
//! Key, order and event are committed together: a client that repeats a request after any failure
//! finds all of it or nothing. Under load one commit serves many customers; without load an order does
//! not wait for others.

use std::{collections::HashSet, sync::Arc};

use anyhow::Context as _;
use contracts::{Cause, OrderId};
use messaging::{Participant, UnitOfWork};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Command, NewOrder, Order},
    event_log,
    idempotency::{self, Claim, Key},
};

/// Most orders in one transaction. Larger batches gain little, and all of their customers wait for the
/// slowest.
const BATCH: usize = 128;
/// Requests that may wait. More are rejected at once: a queue that grows with the overload would only
/// turn into timeouts.
const QUEUE: usize = 1024;

/// A valid order, with the key under which the client may repeat it.
#[derive(Debug)]
pub struct Submission {
    pub key: Key,
    pub order: NewOrder,
    pub cause: Cause,
}

/// The committed result of a submission.
#[derive(Debug)]
pub enum Receipt {
    /// A new order.
    Accepted(Box<Order>),
    /// The order that the first request with this key created, as it was then.
    Replayed(Box<Order>),
    /// The key belongs to another request; nothing was written.
    KeyReused,
}

/// Why there is no receipt. The client may repeat the request with the same key.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error("the first request with this idempotency key is still in progress")]
    InProgress,
    #[error("too many orders are waiting to be accepted")]
    Busy,
    #[error("the service is stopping")]
    Stopping,
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

type Reply = oneshot::Sender<Result<Receipt, IntakeError>>;

/// The front of the intake; cheap to clone.
#[derive(Clone, Debug)]
pub struct Intake {
    /// Bounded: `try_send` fails instead of waiting when it is full.
    queue: mpsc::Sender<(Submission, Reply)>,
    /// Keys whose submission is in this process. Two submissions with one key in one batch would wait
    /// for each other's claim; other replicas are held off by the constraint of the table.
    in_progress: Arc<Mutex<HashSet<Key>>>,
}

impl Intake {
    /// An intake, and the task that serves it until `stopping` and until the queue is empty.
    pub fn new(
        participant: Participant,
        stopping: CancellationToken,
    ) -> (Self, impl Future<Output = anyhow::Result<()>> + Send) {
        let (queue, submissions) = mpsc::channel(QUEUE);
        let intake = Self {
            queue,
            in_progress: Arc::default(),
        };
        (intake, serve(participant, submissions, stopping))
    }

    /// Waits until the order is committed, or returns the order that the same request created before.
    pub async fn submit(&self, submission: Submission) -> Result<Receipt, IntakeError> {
        let key = submission.key.clone();
        let guard = InProgress::enter(Arc::clone(&self.in_progress), key);
        let _in_progress = guard.ok_or(IntakeError::InProgress)?;
        let (reply, receipt) = oneshot::channel();
        let queued = self.queue.try_send((submission, reply));
        queued.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => IntakeError::Busy,
            mpsc::error::TrySendError::Closed(_) => IntakeError::Stopping,
        })?;
        receipt.await.unwrap_or(Err(IntakeError::Stopping))
    }
}

/// Holds a key; dropping it releases the key, also when the client disconnects.
struct InProgress {
    keys: Arc<Mutex<HashSet<Key>>>,
    key: Key,
}

impl InProgress {
    fn enter(keys: Arc<Mutex<HashSet<Key>>>, key: Key) -> Option<Self> {
        let entered = keys.lock().insert(key.clone());
        entered.then_some(Self { keys, key })
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.keys.lock().remove(&self.key);
    }
}

async fn serve(
    participant: Participant,
    mut queue: mpsc::Receiver<(Submission, Reply)>,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            // Waits for the first, then takes all others that have arrived: that is the group commit.
            received = queue.recv_many(&mut batch, BATCH) => if received == 0 { return Ok(()) },
            // What is queued by now is still accepted; then `recv_many` returns 0.
            () = stopping.cancelled() => queue.close(),
        }
        let (submissions, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        if submissions.is_empty() {
            continue;
        }
        let receipts = accept(&participant, &submissions).await;
        for (reply, receipt) in replies.into_iter().zip(receipts) {
            // The client may have disconnected; its key finds the order when it repeats the request.
            let _disconnected = reply.send(receipt);
        }
    }
}

/// Accepts all submissions in one transaction. When it fails, one by one, so that no customer's order
/// fails because of another's.
async fn accept(
    participant: &Participant,
    submissions: &[Submission],
) -> Vec<Result<Receipt, IntakeError>> {
    let error = match commit(participant, submissions).await {
        Ok(receipts) => return receipts.into_iter().map(Ok).collect(),
        Err(error) => error,
    };
    if submissions.len() == 1 {
        return vec![Err(error.into())];
    }
    tracing::warn!(
        error = format!("{error:#}"),
        batch = submissions.len(),
        "a batch of orders could not be committed; its orders are tried one by one"
    );
    let mut receipts = Vec::with_capacity(submissions.len());
    for submission in submissions {
        let alone = commit(participant, std::slice::from_ref(submission)).await;
        let receipt = alone.and_then(|mut receipts| receipts.pop().context("no receipt"));
        receipts.push(receipt.map_err(IntakeError::from));
    }
    receipts
}

/// One transaction: claims the keys, creates the orders whose key was new, finds the orders of the
/// others. Returns one receipt per submission, in order.
async fn commit(
    participant: &Participant,
    submissions: &[Submission],
) -> anyhow::Result<Vec<Receipt>> {
    let claims: Vec<(&Key, Claim)> = submissions.iter().map(claim).collect();
    let mut tx = participant.pool.begin().await.context("begin")?;
    let claimed = idempotency::claim(&mut tx, &claims).await;
    let claimed = claimed.context("claim idempotency keys")?;

    let mut work = UnitOfWork::new(Default::default());
    for submission in submissions {
        if claimed.granted.contains(&submission.order.id) {
            let create = Command::Create(submission.order.clone());
            work.execute(submission.order.id, create, &submission.cause)?;
        }
    }
    work.flush(&mut tx).await.context("insert orders")?;
    let earlier: Vec<OrderId> = claimed
        .earlier
        .values()
        .map(|claim| claim.order_id)
        .collect();
    // Before the commit: a failure after it would look like a failure to accept.
    let mut earlier = event_log::as_accepted(&mut tx, &earlier).await?;
    tx.commit().await.context("commit")?;
    participant.wake.wake();

    let receipts = claims.into_iter().map(|(key, claim)| {
        if let Some(order) = work.take(claim.order_id) {
            return Ok(Receipt::Accepted(Box::new(order)));
        }
        let first = claimed
            .earlier
            .get(key)
            .context("a refused key has a claim")?;
        if first.fingerprint != claim.fingerprint {
            return Ok(Receipt::KeyReused);
        }
        let order = earlier.remove(&first.order_id);
        let order = order.with_context(|| format!("order {} has no log", first.order_id))?;
        Ok(Receipt::Replayed(Box::new(order)))
    });
    receipts.collect()
}

fn claim(submission: &Submission) -> (&Key, Claim) {
    let claim = Claim {
        order_id: submission.order.id,
        fingerprint: idempotency::fingerprint(&submission.order),
    };
    (&submission.key, claim)
}
