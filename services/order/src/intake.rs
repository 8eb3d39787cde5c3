//! Accepts orders in sets: requests that arrive while one transaction is being committed share the
//! next.
//!
//! Key, order and event are committed together: a client that repeats a request after any failure
//! finds either all of it or nothing. Under load one commit serves many customers; without load an
//! order does not wait for others.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use contracts::OrderId;
use messaging::{
    Node,
    outbox::{self, Cause, Outgoing},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Created, Event, Order, evolve},
    idempotency::{self, Claim, Key},
    log, rebuild,
};

/// Most orders in one transaction.
const BATCH: usize = 128;
/// Requests that may wait; more are told to come back.
const QUEUE: usize = 1024;

/// An order to be accepted.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) key: Key,
    pub(crate) order: Created,
    pub(crate) cause: Cause,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A new order.
    Accepted(Box<Order>),
    /// The order that the first request with this key made, as it was then.
    Replayed(Box<Order>),
}

/// Why a request was not accepted. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the idempotency key was used with another request")]
    KeyReused,
    #[error("the first request with this idempotency key is still in flight")]
    InFlight,
    #[error("too many orders are waiting to be accepted")]
    Busy,
    #[error("orders cannot be accepted now")]
    Unavailable,
}

type Reply = oneshot::Sender<Result<Answer, Refused>>;

/// The front of the intake; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Intake {
    queue: mpsc::Sender<(Request, Reply)>,
    in_flight: Arc<Mutex<HashSet<Key>>>,
}

/// Makes an intake and the task that serves it until `shutdown` and the queue is empty.
pub(crate) fn intake(
    node: Node,
    shutdown: CancellationToken,
) -> (Intake, impl Future<Output = anyhow::Result<()>> + Send) {
    let (queue, requests) = mpsc::channel(QUEUE);
    (
        Intake {
            queue,
            in_flight: Arc::default(),
        },
        serve(node, requests, shutdown),
    )
}

impl Intake {
    /// Accepts an order, or answers with the order that the same request made before.
    pub(crate) async fn accept(&self, request: Request) -> Result<Answer, Refused> {
        let _in_flight = InFlight::enter(&self.in_flight, &request.key).ok_or(Refused::InFlight)?;
        let (reply, answer) = oneshot::channel();
        self.queue
            .try_send((request, reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refused::Busy,
                mpsc::error::TrySendError::Closed(_) => Refused::Unavailable,
            })?;
        answer.await.unwrap_or(Err(Refused::Unavailable))
    }
}

/// A key whose request is being worked on in this process; other replicas are held off by the
/// table's constraint.
struct InFlight<'a> {
    keys: &'a Mutex<HashSet<Key>>,
    key: Key,
}

impl<'a> InFlight<'a> {
    fn enter(keys: &'a Mutex<HashSet<Key>>, key: &Key) -> Option<Self> {
        let entered = keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.clone());
        entered.then(|| Self {
            keys,
            key: key.clone(),
        })
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

async fn serve(
    node: Node,
    mut requests: mpsc::Receiver<(Request, Reply)>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            received = requests.recv_many(&mut batch, BATCH) => if received == 0 { return Ok(()) },
            () = shutdown.cancelled() => requests.close(),
        }
        let (requests, replies): (Vec<Request>, Vec<Reply>) = batch.drain(..).unzip();
        if requests.is_empty() {
            continue;
        }
        for (reply, answer) in replies.into_iter().zip(accept_all(&node, &requests).await) {
            // The client may have gone; its key will find the order.
            let _gone = reply.send(answer);
        }
    }
}

/// Accepts all in one transaction; when that fails, one by one, so that nobody fails for another's
/// order.
async fn accept_all(node: &Node, requests: &[Request]) -> Vec<Result<Answer, Refused>> {
    match transaction(node, requests).await {
        Ok(answers) => answers,
        Err(error) if requests.len() == 1 => {
            let request = &requests[0];
            tracing::warn!(order.id = %request.order.id, correlation.id = %request.cause.correlation_id,
                error = format!("{error:#}"), "an order could not be accepted");
            vec![Err(Refused::Unavailable)]
        }
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                batch = requests.len(),
                "accepting orders one by one"
            );
            let mut answers = Vec::with_capacity(requests.len());
            for request in requests {
                answers.extend(Box::pin(accept_all(node, std::slice::from_ref(request))).await);
            }
            answers
        }
    }
}

async fn transaction(
    node: &Node,
    requests: &[Request],
) -> anyhow::Result<Vec<Result<Answer, Refused>>> {
    let claims: Vec<(&Key, Claim)> = requests
        .iter()
        .map(|request| {
            let fingerprint = idempotency::fingerprint(&request.order);
            (
                &request.key,
                Claim {
                    order_id: request.order.id,
                    fingerprint,
                },
            )
        })
        .collect();
    let mut tx = node.pool.begin().await.context("begin")?;
    let held = idempotency::claim(&mut tx, &claims)
        .await
        .context("claim idempotency keys")?;
    let mut verdicts = Vec::with_capacity(requests.len());
    let mut events = Vec::with_capacity(requests.len());
    for (request, (key, claim)) in requests.iter().zip(&claims) {
        let holder = held.get(*key).unwrap_or(claim);
        verdicts.push(if holder.order_id == request.order.id {
            let (order, event) = accept(request)?;
            events.push(event);
            Verdict::New(order)
        } else if holder.fingerprint == claim.fingerprint {
            Verdict::Repeated(holder.order_id)
        } else {
            Verdict::Reused
        });
    }
    let new: Vec<&Order> = verdicts.iter().filter_map(Verdict::new_order).collect();
    if !new.is_empty() {
        crate::store::insert(&mut tx, &new)
            .await
            .context("insert orders")?;
        outbox::append(&mut tx, &events)
            .await
            .context("append events")?;
    }
    tx.commit().await.context("commit")?;
    node.wake.wake();
    let mut answers = Vec::with_capacity(verdicts.len());
    for verdict in verdicts {
        answers.push(answer(node, verdict).await?);
    }
    Ok(answers)
}

enum Verdict {
    New(Order),
    Repeated(OrderId),
    Reused,
}

impl Verdict {
    fn new_order(&self) -> Option<&Order> {
        match self {
            Self::New(order) => Some(order),
            Self::Repeated(_) | Self::Reused => None,
        }
    }
}

fn accept(request: &Request) -> anyhow::Result<(Order, Outgoing<'_>)> {
    let now = outbox::now();
    let event = Event::Created(request.order.clone());
    let order = evolve(None, &event, now).context("a creation makes an order")?;
    let mut outgoing = Outgoing::new(order.id, log::publish(&order, &event), &request.cause);
    outgoing.recorded_at = now;
    Ok((order, outgoing))
}

async fn answer(node: &Node, verdict: Verdict) -> anyhow::Result<Result<Answer, Refused>> {
    Ok(match verdict {
        Verdict::New(order) => Ok(Answer::Accepted(Box::new(order))),
        Verdict::Repeated(id) => {
            let first = rebuild::as_accepted(&node.pool, id).await?;
            Ok(Answer::Replayed(Box::new(first)))
        }
        Verdict::Reused => Err(Refused::KeyReused),
    })
}
