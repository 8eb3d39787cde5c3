//! Accepts orders in batches (group commit): requests that arrive while one transaction is being
//! committed share the next.
//!
//! Key, order and event are committed together: a client that repeats a request after any failure
//! finds all of it or nothing. Under load one commit serves many customers; without load an order
//! does not wait for others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bootstrap::shutdown;
use contracts::{Cause, OrderId};
use futures::FutureExt as _;
use messaging::{DedicatedConnection, Participant, UnitOfWork};
use parking_lot::Mutex;
use sqlx::Connection as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission,
    domain::{Command, Order, PricedOrder},
    event_log,
    idempotency::{self, Claim, Key},
};

/// Most orders in one transaction. Larger batches gain little, and all of their customers wait for
/// the slowest.
const BATCH: usize = 128;
/// Requests that may wait. More are rejected at once: a queue that grows with the overload would
/// only turn into timeouts.
const QUEUE: usize = 1024;

/// A valid order, with the key under which the client may repeat it.
#[derive(Debug)]
pub struct Submission {
    pub key: Key,
    pub fingerprint: Vec<u8>,
    pub order: PricedOrder,
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
    #[error("no new orders are accepted at the moment; a retry with the same key is safe")]
    Busy,
    #[error("the database is unavailable; a retry with the same key is safe")]
    Unavailable,
    #[error("the service is stopping; a retry with the same key is safe")]
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
    /// Keys whose submission is in this process. Two submissions with one key in one batch would
    /// wait for each other's claim; other replicas are held off by the constraint of the table.
    in_progress: Arc<Mutex<HashSet<Key>>>,
    admission: Admission,
}

impl Intake {
    /// An intake, and the task that serves it. The task ends after `stopping`, when no request is
    /// left that could submit an order. An order may be in flight for as long as `deadline`.
    pub fn new(
        participant: Participant,
        deadline: Duration,
        admission: Admission,
        stopping: CancellationToken,
    ) -> (Self, impl Future<Output = anyhow::Result<()>> + Send) {
        let (queue, submissions) = mpsc::channel(QUEUE);
        let intake = Self {
            queue,
            in_progress: Arc::default(),
            admission,
        };
        let acceptor = Acceptor {
            connection: DedicatedConnection::new(participant.pool.clone()),
            participant,
            deadline,
        };
        (intake, acceptor.serve(submissions, stopping))
    }

    /// Whether new orders are accepted at the moment.
    pub fn admit(&self) -> Result<(), IntakeError> {
        match self.admission.is_closed() {
            true => Err(IntakeError::Busy),
            false => Ok(()),
        }
    }

    /// Waits until the order is committed, or returns the order that the same request created
    /// before.
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

/// The back of the intake: one task per process.
struct Acceptor {
    participant: Participant,
    connection: DedicatedConnection,
    /// How long an order may be in flight.
    deadline: Duration,
}

impl Acceptor {
    async fn serve(
        self,
        mut queue: mpsc::Receiver<(Submission, Reply)>,
        stopping: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        // Requests in flight may still submit orders. After that time the server has given them up.
        let drained = tokio::spawn(async move {
            stopping.cancelled().await;
            tokio::time::sleep(shutdown::DRAIN).await;
        });
        let mut drained = drained.fuse();
        loop {
            tokio::select! {
                biased;
                _ended = &mut drained => queue.close(),
                // Waits for the first, then takes all others that have arrived: that is the group
                // commit. 0 when every request has ended, or when the queue is closed and empty.
                received = queue.recv_many(&mut batch, BATCH) => if received == 0 { return Ok(()) },
            }
            // Nobody waits for the others: accepting them would be work for orders that their
            // customers believe to have failed.
            batch.retain(|(_, reply)| !reply.is_closed());
            let (submissions, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
            if submissions.is_empty() {
                continue;
            }
            let receipts = self.accept(&submissions).await;
            for (reply, receipt) in replies.into_iter().zip(receipts) {
                // The client may have disconnected; its key finds the order when it repeats the
                // request.
                let _disconnected = reply.send(receipt);
            }
        }
    }

    /// Accepts all submissions in one transaction. When it fails, one by one, so that no customer's
    /// order fails because of another's; but not while the database is unavailable, when each would
    /// only fail more slowly.
    async fn accept(&self, submissions: &[Submission]) -> Vec<Result<Receipt, IntakeError>> {
        let error = match self.commit(submissions).await {
            Ok(receipts) => return receipts.into_iter().map(Ok).collect(),
            Err(error) => error,
        };
        let unavailable = messaging::is_unavailable(&error);
        if submissions.len() == 1 && !unavailable {
            return vec![Err(error.into())];
        }
        let error = format!("{error:#}");
        if unavailable {
            tracing::warn!(
                error,
                batch = submissions.len(),
                "the database is unavailable; a batch of orders is refused, their clients may retry"
            );
            let refused = submissions.iter().map(|_| Err(IntakeError::Unavailable));
            return refused.collect();
        }
        tracing::warn!(
            error,
            batch = submissions.len(),
            "a batch of orders could not be committed; its orders are tried one by one"
        );
        let mut receipts = Vec::with_capacity(submissions.len());
        for submission in submissions {
            let alone = self.commit(std::slice::from_ref(submission)).await;
            let receipt = alone.and_then(|mut receipts| receipts.pop().context("no receipt"));
            receipts.push(receipt.map_err(IntakeError::from));
        }
        receipts
    }

    /// When the database does not respond, the commit may have been carried out: the key then finds
    /// the order.
    async fn commit(&self, submissions: &[Submission]) -> anyhow::Result<Vec<Receipt>> {
        messaging::in_time(self.transaction(submissions)).await
    }

    /// One transaction: claims the keys, creates the orders whose key was new, finds the orders of
    /// the others. Returns one receipt per submission, in order.
    async fn transaction(&self, submissions: &[Submission]) -> anyhow::Result<Vec<Receipt>> {
        let claims: Vec<(&Key, Claim)> = submissions.iter().map(claim).collect();
        let mut connection = self.connection.take().await.context("connect")?;
        let mut tx = connection.begin().await.context("begin")?;
        let claimed = idempotency::claim(&mut tx, &claims).await;
        let claimed = claimed.context("claim idempotency keys")?;
        // Before the commit: a failure after it would look like a failure to accept.
        let has_claim = |(key, claim): &(&Key, Claim)| {
            claimed.granted.contains_key(&claim.order_id) || claimed.earlier.contains_key(*key)
        };
        ensure!(
            claims.iter().all(has_claim),
            "a key was forgotten while it was claimed"
        );

        let mut work = UnitOfWork::new(Default::default());
        for submission in submissions {
            if let Some(now) = claimed.granted.get(&submission.order.id) {
                let order = submission.order.clone().accept(*now + self.deadline);
                work.execute(order.id, Command::Create(order), &submission.cause)?;
            }
        }
        work.flush(&mut tx).await.context("insert orders")?;
        let earlier: Vec<OrderId> = claimed
            .earlier
            .values()
            .map(|claim| claim.order_id)
            .collect();
        let mut earlier = event_log::as_accepted(&mut tx, &earlier).await?;
        tx.commit().await.context("commit")?;
        self.connection.put_back(connection);
        self.participant.wake.wake();

        let receipts = claims.into_iter().map(|(key, claim)| {
            if let Some(order) = work.take(claim.order_id) {
                return Ok(Receipt::Accepted(Box::new(order)));
            }
            let first = claimed
                .earlier
                .get(key)
                .context("a refused key has a claim")?;
            repeated(first, &claim.fingerprint, &mut earlier)
        });
        receipts.collect()
    }
}

/// What an earlier request with the same key led to, without a new order: for a repetition that is
/// not admitted, or whose prices cannot be had any more.
pub async fn replay(
    participant: &Participant,
    key: &Key,
    fingerprint: &[u8],
) -> anyhow::Result<Option<Receipt>> {
    let mut connection = participant.pool.acquire().await.context("acquire")?;
    let mut claims = idempotency::earlier(&mut connection, &[key]).await?;
    let Some(first) = claims.remove(key) else {
        return Ok(None);
    };
    let mut orders = event_log::as_accepted(&mut connection, &[first.order_id]).await?;
    repeated(&first, fingerprint, &mut orders).map(Some)
}

/// The receipt of a request whose key an earlier one has claimed. `accepted` holds the order of
/// that one.
fn repeated(
    first: &Claim,
    fingerprint: &[u8],
    accepted: &mut HashMap<OrderId, Order>,
) -> anyhow::Result<Receipt> {
    if first.fingerprint != fingerprint {
        return Ok(Receipt::KeyReused);
    }
    let order = accepted.remove(&first.order_id);
    let order = order.with_context(|| format!("order {} has no log", first.order_id))?;
    Ok(Receipt::Replayed(Box::new(order)))
}

fn claim(submission: &Submission) -> (&Key, Claim) {
    let claim = Claim {
        order_id: submission.order.id,
        fingerprint: submission.fingerprint.clone(),
    };
    (&submission.key, claim)
}
