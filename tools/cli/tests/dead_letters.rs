//! `sagacity dlq` with a real broker and a service whose handler fails for a while.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::ensure;
use async_nats::jetstream;
use contracts::{
    Cause, CorrelationId, CustomerId, DecodeError, Envelope, Event, EventId, Inbound, Money,
    OrderId, Service, Subject,
};
use devstack::{
    Endpoints, NatsServer, Reaper, TemporaryDirectory,
    jetstream::{Part, for_each_message, read_stream},
    test::{self, eventually},
};
use futures::StreamExt as _;
use messaging::{Broker, Delivery, Handler, Login, Outcome, Participant, headers};
use proto::order::v1::OrderConfirmed;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use tokio::{process::Command, task::JoinHandle};
use tokio_util::sync::CancellationToken;

struct Confirmed;

impl Inbound for Confirmed {
    const SERVICE: Service = Service::Notification;

    fn from_event(_: Event) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

/// Fails until it is repaired, then counts.
#[derive(Default)]
struct Repairable {
    is_repaired: AtomicBool,
}

impl Handler for Repairable {
    type Inbound = Confirmed;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Confirmed>],
    ) -> anyhow::Result<Vec<Outcome>> {
        ensure!(self.is_repaired.load(Ordering::SeqCst), "a bug");
        for delivery in batch {
            let insert = sqlx::query("INSERT INTO applied VALUES ($1)");
            insert.bind(delivery.event_id().0).execute(&mut *tx).await?;
        }
        Ok(batch.iter().map(|_| Outcome::Done).collect())
    }
}

/// A broker, and the notification service with a handler that fails.
struct System {
    server: NatsServer,
    nats: String,
    pool: PgPool,
    jetstream: jetstream::Context,
    handler: Arc<Repairable>,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl System {
    async fn start() -> Self {
        let server = test::broker().await.unwrap();
        let nats = server.url();
        let (pool, _) = test::database(&[messaging::migrator()]).await.unwrap();
        let create = sqlx::query("CREATE TABLE applied (event_id uuid NOT NULL)");
        create.execute(&pool).await.unwrap();
        let broker = Broker::connect(
            &nats,
            Login {
                user: "notification",
                ..Login::default()
            },
        )
        .await
        .unwrap();
        let mut participant = Participant::new(Service::Notification, pool.clone(), broker);
        participant.max_attempts = 1;
        let handler = Arc::new(Repairable::default());
        let shutdown = CancellationToken::new();
        let run = messaging::run::run(participant, Arc::clone(&handler), shutdown.clone());
        let running = tokio::spawn(run);
        let jetstream = devstack::jetstream::open(&nats).await.unwrap();
        eventually("the streams exist", async || {
            jetstream.get_stream("AUDIT").await.is_ok()
        })
        .await;
        Self {
            server,
            nats,
            pool,
            jetstream,
            handler,
            shutdown,
            running,
        }
    }

    async fn stop(mut self) {
        self.stop_service().await;
        drop(self.server);
    }

    async fn stop_service(&mut self) {
        self.shutdown.cancel();
        (&mut self.running).await.unwrap().unwrap();
    }

    async fn publish(&self) -> EventId {
        let order_id = OrderId::new();
        let event = Event::OrderConfirmed(OrderConfirmed {
            order_id: order_id.to_string(),
            customer_id: CustomerId::new().to_string(),
            total: Some(Money::new(100, "EUR".parse().unwrap()).into()),
        });
        self.publish_payload(order_id, event.encode()).await
    }

    async fn publish_payload(&self, order_id: OrderId, payload: Vec<u8>) -> EventId {
        let envelope = Envelope {
            event_id: EventId::new(),
            subject: Subject::OrderConfirmed,
            order_id,
            time: time::OffsetDateTime::now_utc(),
            cause: Cause {
                correlation_id: CorrelationId::new(),
                causation_id: EventId::new(),
                traceparent: None,
            },
        };
        let headers = headers::to_headers(&envelope, Service::Order);
        let subject = envelope.subject.to_string();
        let published = devstack::jetstream::publish(&self.jetstream, subject, headers, payload);
        published.await.unwrap();
        envelope.event_id
    }

    async fn dlq(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sagacity"));
        command
            .args(["dlq", "--nats-url", &self.nats])
            .args(arguments);
        command.env("USER", "an operator").output().await.unwrap()
    }

    /// Runs a command that must fail, and returns what it says.
    async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.dlq(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    async fn letters(&self) -> Vec<Value> {
        let listed = self.dlq(&["list", "--json"]).await;
        assert!(listed.status.success(), "{listed:?}");
        serde_json::from_slice(&listed.stdout).unwrap()
    }

    /// Waits until the dead letters are those of these events.
    async fn wait_for_letters(&self, events: &[EventId]) {
        let events: Vec<Value> = events.iter().map(|id| id.to_string().into()).collect();
        eventually("the dead letters", async || {
            let letters = self.letters().await;
            let found: Vec<_> = letters.iter().map(|letter| &letter["event_id"]).collect();
            found == events.iter().collect::<Vec<_>>()
        })
        .await;
    }

    async fn applied(&self) -> i64 {
        let applied = sqlx::query_scalar("SELECT count(*) FROM applied");
        applied.fetch_one(&self.pool).await.unwrap()
    }

    /// The lines of the audit: act, outcome, who, and the event.
    async fn audit(&self) -> Vec<[String; 4]> {
        let lines = read_stream(&self.jetstream, "AUDIT").await.unwrap();
        let lines = lines.iter().map(|line| {
            let line: Value = serde_json::from_slice(&line.payload).unwrap();
            let event = &line["dead_letter"]["event_id"];
            [&line["act"], &line["outcome"], &line["by"], event]
                .map(|value| value.as_str().unwrap().to_owned())
        });
        lines.collect()
    }
}

fn line(act: &str, outcome: &str, event: EventId) -> [String; 4] {
    [act, outcome, "an operator", &event.to_string()].map(str::to_owned)
}

#[tokio::test]
async fn a_dead_letter_comes_back_to_the_service_that_gave_up_and_is_applied_once() {
    let system = System::start().await;
    let (first, second) = (system.publish().await, system.publish().await);
    system.wait_for_letters(&[first, second]).await;
    let listed = system.letters().await;
    assert_eq!(listed[0]["service"], "notification");
    assert_eq!(listed[0]["subject"], "order.confirmed.v1");
    assert_eq!(listed[0]["reason"], "gave up after 1 attempts: a bug");
    for id in ["1", &first.to_string()] {
        let shown = system.dlq(&["show", id]).await;
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("OrderConfirmed"), "{shown}");
    }

    // No selection, and a dry run, change nothing.
    let unselected = system.refused(&["redrive"]).await;
    assert!(unselected.contains("--all"), "{unselected}");
    let dry = system.dlq(&["redrive", "--all", "--dry-run"]).await;
    assert!(dry.status.success());
    assert_eq!(system.letters().await.len(), 2);
    assert!(system.audit().await.is_empty());

    let by_id = ["redrive", "--id", &first.to_string()];
    system.handler.is_repaired.store(true, Ordering::SeqCst);
    assert!(system.dlq(&by_id).await.status.success());
    eventually("the event is applied", async || system.applied().await == 1).await;
    let redriven = async || {
        let redriven = read_stream(&system.jetstream, "REDRIVE").await;
        redriven.unwrap().len()
    };
    assert_eq!(redriven().await, 1);

    let by_reason = ["discard", "--service", "notification", "--reason", "a bug"];
    assert!(system.dlq(&by_reason).await.status.success());
    assert_eq!(system.letters().await.len(), 0);
    assert_eq!(
        system.audit().await,
        [
            line("redrive", "started", first),
            line("redrive", "done", first),
            line("discard", "started", second),
            line("discard", "done", second),
        ]
    );
    // Other consumers of the event do not get it again.
    let events = read_stream(&system.jetstream, "ORDER").await.unwrap();
    assert_eq!(events.len(), 2);
    // The next redrive deletes what was handled.
    eventually("it is deleted", async || {
        assert!(system.dlq(&["redrive", "--all"]).await.status.success());
        redriven().await == 0
    })
    .await;
    let pool = system.pool.clone();
    system.stop().await;
    let applied = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM applied");
    assert_eq!(applied.fetch_one(&pool).await.unwrap(), 1);
}

/// A redrive makes room only by what its service has handled.
#[tokio::test]
async fn redriven_events_stay_until_their_service_is_back() {
    let mut system = System::start().await;
    let events = [system.publish().await, system.publish().await];
    system.wait_for_letters(&events).await;
    system.handler.is_repaired.store(true, Ordering::SeqCst);
    system.stop_service().await;
    for event in events {
        let id = event.to_string();
        assert!(system.dlq(&["redrive", "--id", &id]).await.status.success());
    }
    let redriven = read_stream(&system.jetstream, "REDRIVE").await.unwrap();
    assert_eq!(redriven.len(), 2);
    drop(system.server);
}

#[tokio::test]
async fn an_event_that_fails_again_is_kept_again_and_still_names_its_first_stream() {
    let system = System::start().await;
    // Its sequence in ORDER is 2, in REDRIVE it is another.
    let (other, event) = (system.publish().await, system.publish().await);
    system.wait_for_letters(&[other, event]).await;
    for redrives in 1..=3 {
        let redrive = system.dlq(&["redrive", "--id", &event.to_string()]).await;
        assert!(redrive.status.success(), "{redrive:?}");
        eventually("it is a dead letter again", async || {
            let letters = system.letters().await;
            letters.len() == 2 && letters[1]["redrives"] == redrives
        })
        .await;
        let letter = &system.letters().await[1];
        assert_eq!(letter["event_id"], event.to_string());
        assert_eq!(letter["subject"], "order.confirmed.v1");
        assert_eq!(letter["stream"], "ORDER");
        assert_eq!(letter["stream_sequence"], 2);
        assert_eq!(letter["attempts"], 1);
    }
    system.stop().await;
}

#[tokio::test]
async fn an_id_that_no_dead_letter_has_is_named_and_is_an_error() {
    let system = System::start().await;
    let event = system.publish().await;
    system.wait_for_letters(&[event]).await;
    let absent = EventId::new().to_string();
    for asked in [&["show", &absent][..], &["list", "--id", &absent]] {
        let said = system.refused(asked).await;
        assert!(said.contains(&absent), "{said}");
    }
    for wrong in [["discard", "--id", ""], ["discard", "--reason", ""]] {
        let said = system.refused(&wrong).await;
        assert!(said.contains("is empty"), "{said}");
    }
    assert_eq!(system.letters().await.len(), 1);
    // The others are handled.
    let said = system
        .refused(&["discard", "--id", &absent, "--id", &event.to_string()])
        .await;
    assert!(said.contains(&absent), "{said}");
    assert!(system.letters().await.is_empty());
    system.stop().await;
}

#[tokio::test]
async fn an_act_that_fails_does_not_read_as_done() {
    let mut system = System::start().await;
    let event = system.publish().await;
    system.wait_for_letters(&[event]).await;
    // It would declare again what is deleted here.
    system.stop_service().await;
    system.jetstream.delete_stream("REDRIVE").await.unwrap();
    let said = system.refused(&["redrive", "--all"]).await;
    assert!(said.contains("publish to the stream REDRIVE"), "{said}");
    let failed = [
        line("redrive", "started", event),
        line("redrive", "failed", event),
    ];
    assert_eq!(system.audit().await, failed);
    assert_eq!(system.letters().await.len(), 1);

    // Without an audit nothing is done.
    system.jetstream.delete_stream("AUDIT").await.unwrap();
    let said = system.refused(&["discard", "--all"]).await;
    assert!(said.contains("publish to the stream AUDIT"), "{said}");
    assert_eq!(system.letters().await.len(), 1);
}

#[tokio::test]
async fn a_truncated_event_is_redriven_from_its_stream_and_not_without_it() {
    let system = System::start().await;
    let event = system
        .publish_payload(OrderId::new(), vec![0; 300 * 1024])
        .await;
    system.wait_for_letters(&[event]).await;
    let letter = &system.letters().await[0];
    assert_eq!(letter["truncated_from"], 300 * 1024);
    let id = event.to_string();
    assert!(system.dlq(&["redrive", "--id", &id]).await.status.success());
    eventually("it is a dead letter again", async || {
        let letters = system.letters().await;
        letters.len() == 1 && letters[0]["redrives"] == 1
    })
    .await;
    let redriven = read_stream(&system.jetstream, "REDRIVE").await.unwrap();
    assert_eq!(redriven[0].payload.len(), 300 * 1024);

    let order = system.jetstream.get_stream("ORDER").await.unwrap();
    order.purge().await.unwrap();
    for arguments in [
        &["redrive", "--all"][..],
        &["redrive", "--all", "--dry-run"],
    ] {
        let said = system.refused(arguments).await;
        let expected = "only the first 262144 of 307200 bytes, and the event is not in the stream \
                        ORDER any more: it cannot be redriven, only discarded";
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(system.letters().await.len(), 1);
    system.stop().await;
}

#[tokio::test]
async fn a_flag_wins_over_an_exported_variable() {
    let (named, exported) = (System::start().await, System::start().await);
    let event = named.publish().await;
    named.wait_for_letters(&[event]).await;
    let directory = TemporaryDirectory::new(&Reaper::new().unwrap()).unwrap();
    let endpoints = Endpoints {
        gateway: String::new(),
        provider: String::new(),
        nats: named.nats.clone(),
        databases: BTreeMap::new(),
        owners: BTreeMap::new(),
        admin: BTreeMap::new(),
        pids: BTreeMap::new(),
    };
    let _in_use = devstack::state::claim(directory.path(), false, "a system").unwrap();
    endpoints.write(directory.path()).unwrap();
    let list = async |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sagacity"));
        command
            .env("NATS_URL", &exported.nats)
            .args(["dlq", "list"]);
        let output = command.args(flags).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let state = directory.path().to_str().unwrap();
    assert!(list(&["--state", state]).await.contains("1 dead letters"));
    assert!(list(&[]).await.contains("0 dead letters"));
    let flags = ["--state", state, "--nats-url", &exported.nats];
    assert!(list(&flags).await.contains("0 dead letters"));
    named.stop().await;
    exported.stop().await;
}

#[tokio::test]
async fn dead_letters_are_selected_by_headers_and_payloads_are_read_one_at_a_time() {
    let system = System::start().await;
    let (first, second) = (system.publish().await, system.publish().await);
    system.wait_for_letters(&[first, second]).await;
    let client = async_nats::connect(&system.nats).await.unwrap();
    let mut readers = client.subscribe("$JS.API.CONSUMER.CREATE.>").await.unwrap();
    client.flush().await.unwrap();
    let redrive = ["redrive", "--id", &first.to_string(), "--dry-run"];
    assert!(system.dlq(&redrive).await.status.success());
    let reader = tokio::time::timeout(test::TIMEOUT, readers.next()).await;
    let reader = reader.unwrap().unwrap();
    let reader: Value = serde_json::from_slice(&reader.payload).unwrap();
    assert_eq!(reader["config"]["headers_only"], true);
    // A list ends also when the newest dead letter is another service's, or was deleted.
    let of_payment = system.dlq(&["list", "--service", "payment"]).await;
    assert!(
        String::from_utf8(of_payment.stdout)
            .unwrap()
            .contains("0 dead letters")
    );
    assert!(system.dlq(&["discard", "--id", "2"]).await.status.success());
    assert_eq!(system.letters().await.len(), 1);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_to_its_end_while_another_reader_deletes() {
    let server = test::broker().await.unwrap();
    let jetstream = devstack::jetstream::open(&server.url()).await.unwrap();
    let config = jetstream::stream::Config {
        name: "SHRINKING".to_owned(),
        subjects: vec!["shrinking".to_owned()],
        ..Default::default()
    };
    let stream = jetstream.create_stream(config).await.unwrap();
    // More than a reader gets ahead.
    for _ in 0..1500 {
        let subject = "shrinking".to_owned();
        let published =
            devstack::jetstream::publish(&jetstream, subject, Default::default(), Vec::new());
        published.await.unwrap();
    }
    let mut read = 0;
    let mut take = |_| {
        if read == 0 {
            let purged = async { stream.purge().await.unwrap() };
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(purged));
        }
        read += 1;
        Ok(())
    };
    for_each_message(&jetstream, "SHRINKING", Part::Whole, &mut take)
        .await
        .unwrap();
    assert!((1..1500).contains(&read), "{read}");
}
