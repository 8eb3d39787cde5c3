//! A publisher (as the order service) and a consumer (as the notification service) with a broker
//! between them.
#![expect(clippy::unwrap_used, reason = "test support")]

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::anyhow;
use async_nats::jetstream::{self, consumer::PullConsumer};
use contracts::{
    CorrelationId, CustomerId, DecodeError, Envelope, Event, EventId, Inbound, Money, OrderId,
    Subject, choreography::Service,
};
use devstack::{NatsServer, test};
use futures::TryStreamExt as _;
use messaging::{
    Broker, Delivery, Handler, Node, Outcome,
    outbox::{self, Cause, Outgoing},
};
use proto::order::v1::OrderConfirmed;
use sqlx::{PgConnection, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) struct Rig {
    pub(crate) server: Option<NatsServer>,
    pub(crate) publisher: Node,
    pub(crate) consumer: Node,
    pub(crate) handler: Arc<Recorder>,
    jetstream: jetstream::Context,
}

pub(crate) struct Running {
    task: JoinHandle<anyhow::Result<()>>,
    shutdown: CancellationToken,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) struct Said {
    pub(crate) event_id: EventId,
    pub(crate) cause: Cause,
}

/// Waits until `condition` holds, for a minute at the most.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < until, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn confirmed(order: OrderId) -> Event {
    Event::OrderConfirmed(OrderConfirmed {
        order_id: order.to_string(),
        customer_id: CustomerId::new().to_string(),
        total: Some(Money::new(100, "EUR").unwrap().into()),
    })
}

fn command() -> Cause {
    let trace = Uuid::new_v4().simple();
    let traceparent = Some(format!("00-{trace}-b7ad6b7169203331-01"));
    Cause {
        correlation_id: CorrelationId::new(),
        causation_id: EventId::new(),
        traceparent,
    }
}

const APPLIED: &str = "CREATE TABLE applied (nth bigint GENERATED ALWAYS AS IDENTITY, order_id uuid NOT NULL, event_id uuid NOT NULL)";

impl Rig {
    pub(crate) async fn new() -> Self {
        let server = test::broker().await.unwrap();
        let (publishing, _) = test::database(&[messaging::migrator()]).await.unwrap();
        let (consuming, _) = test::database(&[messaging::migrator()]).await.unwrap();
        sqlx::query(APPLIED).execute(&consuming).await.unwrap();
        let broker = async |name| Broker::connect(&server.url(), name).await.unwrap();
        let publisher = Node::new(Service::Order, publishing, broker("order").await);
        let consumer = Node::new(
            Service::Notification,
            consuming,
            broker("notification").await,
        );
        let jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        Self {
            server: Some(server),
            publisher,
            consumer,
            handler: Arc::default(),
            jetstream,
        }
    }

    /// Lets the consumer use another database, which is empty.
    pub(crate) async fn consume_from(&mut self, url: &str) {
        let pool = PgPool::connect(url).await.unwrap();
        messaging::migrator().run(&pool).await.unwrap();
        sqlx::query(APPLIED).execute(&pool).await.unwrap();
        self.consumer.pool = pool;
    }

    pub(crate) fn run_publisher(&self) -> Running {
        run(&self.publisher, Arc::new(Deaf))
    }

    pub(crate) fn run_consumer(&self) -> Running {
        run(&self.consumer, Arc::clone(&self.handler))
    }

    /// Commits an event and wakes the relay.
    pub(crate) async fn say(&self, order: OrderId) -> Said {
        let said = self.append_quietly(order).await;
        self.publisher.wake.wake();
        said
    }

    /// Commits an event and wakes nobody.
    pub(crate) async fn append_quietly(&self, order: OrderId) -> Said {
        let mut tx = self.publisher.pool.begin().await.unwrap();
        let said = self.append(&mut tx, order).await;
        tx.commit().await.unwrap();
        said
    }

    pub(crate) async fn append(&self, tx: &mut PgConnection, order: OrderId) -> Said {
        let cause = command();
        let outgoing = Outgoing::new(order, confirmed(order), &cause);
        let event_id = outgoing.event_id;
        outbox::append(tx, &[outgoing]).await.unwrap();
        Said { event_id, cause }
    }

    pub(crate) async fn declare(&self) {
        messaging::topology::reconcile_streams(&self.consumer.broker)
            .await
            .unwrap();
    }

    /// Publishes an event whose id is made from the order's, under a new message id.
    pub(crate) async fn publish_copy_of(&self, order: OrderId) {
        let cause = command();
        let envelope = Envelope {
            event_id: EventId(order.0),
            subject: Subject::OrderConfirmed,
            order_id: order,
            time: outbox::now(),
            correlation_id: cause.correlation_id,
            causation_id: cause.causation_id,
            traceparent: None,
        };
        let mut headers = envelope.to_headers(Service::Order);
        headers.insert(contracts::header::NATS_MSG_ID, Uuid::now_v7().to_string());
        let payload = confirmed(order).encode().into();
        #[expect(
            clippy::disallowed_methods,
            reason = "the test plays a broker that repeats itself"
        )]
        let published =
            self.jetstream
                .publish_with_headers(Subject::OrderConfirmed.as_str(), headers, payload);
        published.await.unwrap().await.unwrap();
    }

    pub(crate) async fn unsent(&self) -> i64 {
        let unsent = sqlx::query_scalar("SELECT count(*) FROM outbox WHERE sent_at IS NULL");
        unsent.fetch_one(&self.publisher.pool).await.unwrap()
    }

    /// The orders that the handler has applied events of; nothing while the database is away.
    pub(crate) async fn applied(&self) -> Vec<OrderId> {
        let applied = sqlx::query_scalar::<_, Uuid>("SELECT order_id FROM applied ORDER BY nth");
        applied
            .fetch_all(&self.consumer.pool)
            .await
            .unwrap_or_default()
            .into_iter()
            .map(OrderId)
            .collect()
    }

    pub(crate) async fn stream_exists(&self, stream: &str) -> bool {
        self.jetstream.get_stream(stream).await.is_ok()
    }

    /// The orders of the events in a stream.
    pub(crate) async fn stream(&self, stream: &str) -> Vec<OrderId> {
        let of = |message: &jetstream::Message| {
            Envelope::from_headers(message.headers.as_ref())
                .unwrap()
                .order_id
        };
        self.messages(stream).await.iter().map(of).collect()
    }

    pub(crate) async fn dead_letters(&self) -> Vec<jetstream::Message> {
        self.messages("DEAD_LETTER").await
    }

    /// Everything in a stream; nothing while stream or broker is away.
    async fn messages(&self, name: &str) -> Vec<jetstream::Message> {
        let read = async {
            let mut stream = self.jetstream.get_stream(name).await?;
            let count = stream.info().await?.state.messages;
            let config = jetstream::consumer::pull::OrderedConfig::default();
            let mut all = stream.create_consumer(config).await?.messages().await?;
            let mut messages = Vec::new();
            for _ in 0..count {
                messages.extend(all.try_next().await?);
            }
            anyhow::Ok(messages)
        };
        read.await.unwrap_or_default()
    }

    pub(crate) async fn forget_consumer(&self, stream: &str) {
        let stream = self.jetstream.get_stream(stream).await.unwrap();
        stream
            .delete_consumer(Service::Notification.name())
            .await
            .unwrap();
    }

    pub(crate) async fn is_idle(&self, stream: &str) -> bool {
        self.in_flight(stream).await == Some((0, 0))
    }

    /// Whether the consumer has an event in hand that it has not acknowledged.
    pub(crate) async fn is_waiting(&self, stream: &str) -> bool {
        self.in_flight(stream)
            .await
            .is_some_and(|(_, unacknowledged)| unacknowledged > 0)
    }

    async fn in_flight(&self, stream: &str) -> Option<(u64, usize)> {
        let stream = self.jetstream.get_stream(stream).await.ok()?;
        let mut consumer: PullConsumer = stream
            .get_consumer(Service::Notification.name())
            .await
            .ok()?;
        let info = consumer.info().await.ok()?;
        Some((info.num_pending, info.num_ack_pending))
    }
}

fn run<H: Handler>(node: &Node, handler: Arc<H>) -> Running {
    let shutdown = CancellationToken::new();
    Running {
        task: tokio::spawn(messaging::run(node.clone(), handler, shutdown.clone())),
        shutdown,
    }
}

/// Applies events by writing them down, and fails where it is told to.
#[derive(Default)]
pub(crate) struct Recorder {
    failing: Mutex<HashMap<OrderId, u32>>,
    poisoned: Mutex<HashSet<OrderId>>,
    causes: Mutex<Vec<Cause>>,
}

impl Recorder {
    /// Fails the next `times` deliveries of an order's events, with an error that sinks the batch.
    pub(crate) fn fail(&self, order: OrderId, times: u32) {
        self.failing.lock().unwrap().insert(order, times);
    }

    pub(crate) fn poison(&self, order: OrderId) {
        self.poisoned.lock().unwrap().insert(order);
    }

    pub(crate) fn causes(&self) -> Vec<Cause> {
        self.causes.lock().unwrap().clone()
    }

    /// Counts only deliveries of single events: that is when an event itself is at fault.
    fn fails(&self, order: OrderId, alone: bool) -> bool {
        match self.failing.lock().unwrap().get_mut(&order) {
            Some(left) if *left > 0 => {
                *left -= u32::from(alone);
                true
            }
            _ => false,
        }
    }
}

pub(crate) struct Heard;

impl Inbound for Heard {
    const SERVICE: Service = Service::Notification;

    fn from_event(_: Event) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

impl Handler for Recorder {
    type Inbound = Heard;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Heard>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for delivery in batch {
            let order = delivery.order_id();
            if self.fails(order, batch.len() == 1) {
                return Err(anyhow!("asked to fail"));
            }
            if self.poisoned.lock().unwrap().contains(&order) {
                outcomes.push(Outcome::Poison(anyhow!("poisoned")));
                continue;
            }
            let insert = sqlx::query("INSERT INTO applied (order_id, event_id) VALUES ($1, $2)");
            insert
                .bind(order.0)
                .bind(delivery.event_id().0)
                .execute(&mut *tx)
                .await?;
            self.causes.lock().unwrap().push(delivery.cause().clone());
            outcomes.push(Outcome::Done);
        }
        Ok(outcomes)
    }
}

/// Hears nothing; for nodes that only publish.
pub(crate) struct Deaf;

pub(crate) enum Nothing {}

impl Inbound for Nothing {
    const SERVICE: Service = Service::Order;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        Err(DecodeError::NotForUs(event.subject()))
    }
}

impl Handler for Deaf {
    type Inbound = Nothing;

    async fn handle(
        &self,
        _: &mut PgConnection,
        batch: &[Delivery<Nothing>],
    ) -> anyhow::Result<Vec<Outcome>> {
        Ok(batch.iter().map(|_| Outcome::Done).collect())
    }
}
