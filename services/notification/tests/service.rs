//! The notification service as processes, with a real database and broker. The test publishes as
//! the order service.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contracts::{
    Cause, CorrelationId, CustomerId, Envelope, Event, EventId, Money, OrderId, PaymentId, Service,
};
use devstack::{
    NatsServer,
    test::{self, Program, eventually},
};
use futures::future::try_join_all;
use proto::{
    notification::v1::{
        ListNotificationsRequest, NotificationKind,
        notification_service_client::NotificationServiceClient,
    },
    order::v1::{OrderCancelled, OrderConfirmed},
    payment::v1::PaymentRefunded,
};
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use uuid::Uuid;

type Client = NotificationServiceClient<Channel>;

/// That of a mail.
const LEASE: Duration = Duration::from_secs(30);

fn cancelled(order: OrderId) -> Event {
    Event::OrderCancelled(OrderCancelled {
        order_id: order.to_string(),
        customer_id: CustomerId::new().to_string(),
        reason: 4,
    })
}

fn confirmed(order: OrderId, customer: CustomerId) -> Event {
    Event::OrderConfirmed(OrderConfirmed {
        order_id: order.to_string(),
        customer_id: customer.to_string(),
        total: Some(Money::new(100, "EUR".parse().unwrap()).into()),
    })
}

fn refunded(order: OrderId) -> Event {
    Event::PaymentRefunded(PaymentRefunded {
        order_id: order.to_string(),
        payment_id: PaymentId::new().to_string(),
        amount: Some(Money::new(100, "EUR".parse().unwrap()).into()),
        customer_id: CustomerId::new().to_string(),
    })
}

/// Publishes that an order was confirmed, with a new event id each time: neither broker nor inbox
/// can recognize a repetition.
async fn publish(jetstream: &jetstream::Context, order: OrderId) {
    publish_event(jetstream, order, confirmed(order, CustomerId::new())).await;
}

async fn publish_event(jetstream: &jetstream::Context, order: OrderId, event: Event) {
    let envelope = Envelope {
        event_id: EventId::new(),
        subject: event.subject(),
        order_id: order,
        time: time::OffsetDateTime::now_utc(),
        cause: Cause {
            correlation_id: CorrelationId::new(),
            causation_id: EventId::new(),
            traceparent: None,
        },
    };
    let headers = messaging::headers::to_headers(&envelope, Service::Order);
    let subject = event.subject().to_string();
    let published = devstack::jetstream::publish(jetstream, subject, headers, event.encode());
    published.await.unwrap();
}

async fn notifications(client: &mut Client, order: OrderId) -> Vec<NotificationKind> {
    let request = ListNotificationsRequest {
        order_id: order.to_string(),
    };
    let response = client
        .list_notifications(request)
        .await
        .unwrap()
        .into_inner();
    response
        .notifications
        .iter()
        .map(|notification| notification.kind())
        .collect()
}

/// What the mail server does with the mails to a customer.
#[derive(Clone, Copy)]
enum Treatment {
    Accept,
    /// Refuses the recipient with this answer.
    RefuseRecipient(&'static str),
    /// Refuses the mail itself with this answer, when it has all of it.
    RefuseMail(&'static str),
    /// Receives the whole mail, and accepts it when the test lets it.
    AcceptLate,
    /// Does not answer until the test lets it.
    Hold,
}

/// A mail server that refuses the first mail, treats others as the test says, accepts those it says
/// nothing about, and sends what it accepts to the test.
struct MailServer {
    url: String,
    /// By customer.
    treatments: Mutex<HashMap<String, Treatment>>,
    /// The customer of each attempt.
    attempts: Mutex<Vec<String>>,
    /// Whether held mails may go on.
    released: watch::Sender<bool>,
    kept: mpsc::UnboundedSender<String>,
    busy: AtomicBool,
}

impl MailServer {
    async fn start(kept: mpsc::UnboundedSender<String>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Self {
            url: format!("smtp://{}", listener.local_addr().unwrap()),
            treatments: Mutex::default(),
            attempts: Mutex::default(),
            released: watch::Sender::new(false),
            kept,
            busy: AtomicBool::new(true),
        });
        let accepting = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&accepting);
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        server
    }

    fn treat(&self, customer: CustomerId, treatment: Treatment) {
        let mut treatments = self.treatments.lock().unwrap();
        treatments.insert(customer.to_string(), treatment);
    }

    fn attempts(&self, customer: CustomerId) -> usize {
        let attempts = self.attempts.lock().unwrap();
        let customer = customer.to_string();
        attempts.iter().filter(|other| **other == customer).count()
    }

    /// Notes an attempt to mail the recipient of a `RCPT` line.
    fn attempt(&self, line: &str) -> Treatment {
        let address = line.split_once('<').map_or("", |(_, address)| address);
        let customer = address.split('@').next().unwrap().to_owned();
        let treatment = self.treatments.lock().unwrap().get(&customer).copied();
        self.attempts.lock().unwrap().push(customer);
        treatment.unwrap_or(Treatment::Accept)
    }

    /// Just enough of RFC 5321 for a well-behaved client.
    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut treatment = Treatment::Accept;
        writer.write_all(b"220 ready\r\n").await?;
        while let Some(line) = lines.next_line().await? {
            let response = match line.get(..4) {
                Some("RCPT") => {
                    treatment = self.attempt(&line);
                    match treatment {
                        Treatment::RefuseRecipient(answer) => answer,
                        Treatment::Hold => {
                            let mut released = self.released.subscribe();
                            let _test_ended = released.wait_for(|released| *released).await;
                            "250 fine"
                        }
                        Treatment::Accept | Treatment::RefuseMail(_) | Treatment::AcceptLate => {
                            "250 fine"
                        }
                    }
                }
                Some("DATA") if self.busy.swap(false, Ordering::Relaxed) => "451 try again later",
                Some("DATA") => {
                    writer.write_all(b"354 go on\r\n").await?;
                    let mut mail = String::new();
                    while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                        mail.push_str(&line);
                        mail.push('\n');
                    }
                    if let Treatment::AcceptLate = treatment {
                        let mut released = self.released.subscribe();
                        let _test_ended = released.wait_for(|released| *released).await;
                    }
                    if let Treatment::RefuseMail(answer) = treatment {
                        answer
                    } else {
                        let _test_ended = self.kept.send(mail);
                        "250 kept"
                    }
                }
                Some("QUIT") => "221 bye",
                _ => "250 fine",
            };
            writer
                .write_all(format!("{response}\r\n").as_bytes())
                .await?;
        }
        Ok(())
    }
}

/// What services that send mails are started with.
struct Installation {
    broker: NatsServer,
    database_url: String,
    smtp_url: String,
}

impl Installation {
    async fn start(&self) -> Program {
        let settings = [
            ("DATABASE_URL", self.database_url.as_str()),
            ("NATS_URL", &self.broker.url()),
            ("SMTP_URL", &self.smtp_url),
        ];
        let service = Program::start(env!("CARGO_BIN_EXE_notification"), &settings);
        service.await.unwrap()
    }
}

/// A service that sends mails.
struct Mailing {
    service: Program,
    mail_server: Arc<MailServer>,
    /// What the mail server has accepted.
    kept: mpsc::UnboundedReceiver<String>,
    database: PgPool,
    jetstream: jetstream::Context,
    installation: Installation,
}

impl Mailing {
    async fn start() -> Self {
        let (sender, kept) = mpsc::unbounded_channel();
        let mail_server = MailServer::start(sender).await;
        let broker = test::broker().await.unwrap();
        let jetstream = devstack::jetstream::open(&broker.url()).await.unwrap();
        let (database, database_url) = test::database(&[]).await.unwrap();
        let installation = Installation {
            broker,
            database_url,
            smtp_url: mail_server.url.clone(),
        };
        Self {
            service: installation.start().await,
            mail_server,
            kept,
            database,
            jetstream,
            installation,
        }
    }
}

#[tokio::test]
async fn each_notification_is_mailed_even_if_the_mail_server_is_unavailable_or_the_service_killed()
{
    let Mailing {
        service: first,
        mail_server: _mail_server,
        mut kept,
        database,
        jetstream,
        installation,
    } = Mailing::start().await;
    let orders: Vec<OrderId> = (0..20).map(|_| OrderId::new()).collect();
    for order in &orders {
        publish(&jetstream, *order).await;
    }
    let mut mails = vec![kept.recv().await.unwrap()];
    first.kill().await.unwrap();
    // Mails that it had leased are due when their lease expires; the test does not wait for that.
    sqlx::query("UPDATE notifications SET mail_due_at = now() WHERE mail_due_at IS NOT NULL")
        .execute(&database)
        .await
        .unwrap();
    let _second = installation.start().await;
    let due = "SELECT count(*) FROM notifications WHERE mail_due_at IS NOT NULL";
    let all = "SELECT count(*) FROM notifications";
    let count = async |query: &'static str| {
        sqlx::query_scalar::<_, i64>(query)
            .fetch_one(&database)
            .await
            .unwrap()
    };
    eventually("no mail waits", async || {
        count(all).await == 20 && count(due).await == 0
    })
    .await;
    while let Ok(mail) = kept.try_recv() {
        mails.push(mail);
    }
    for order in orders {
        let about: Vec<&String> = mails
            .iter()
            .filter(|mail| mail.contains(&format!("Subject: Your order {order}: confirmed")))
            .collect();
        let id = |mail: &str| {
            mail.lines()
                .find(|line| line.starts_with("Message-ID: <"))
                .map(str::to_owned)
        };
        assert!(!about.is_empty(), "no mail about {order}");
        assert!(
            about
                .iter()
                .all(|mail| id(mail).is_some() && id(mail) == id(about[0])),
            "one id: {about:?}"
        );
    }
}

/// A way to the database that can fall silent: connections stay open, and nothing comes through.
/// Returns its URL, and what makes it silent.
async fn way_to(database_url: &str) -> (String, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options: PgConnectOptions = database_url.parse().unwrap();
    let server = ("127.0.0.1", options.get_port());
    let port = |port: u16| format!(":{port}/");
    let own = listener.local_addr().unwrap().port();
    let url = database_url.replace(&port(server.1), &port(own));
    let silent = CancellationToken::new();
    let falls_silent = silent.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let silent = falls_silent.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                let copied = tokio::io::copy_bidirectional(&mut client, &mut server);
                if silent.run_until_cancelled(copied).await.is_none() {
                    // Keeps both connections open.
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (url, silent)
}

#[tokio::test]
async fn the_service_ends_in_time_while_mail_server_and_database_are_silent() {
    let mut mailing = Mailing::start().await;
    mailing.service.kill().await.unwrap();
    let (database_url, silent) = way_to(&mailing.installation.database_url).await;
    mailing.installation.database_url = database_url;
    let mut service = mailing.installation.start().await;
    let customer = CustomerId::new();
    mailing.mail_server.treat(customer, Treatment::Hold);
    let order = OrderId::new();
    publish_event(&mailing.jetstream, order, confirmed(order, customer)).await;
    eventually("the mail is being sent", async || {
        mailing.mail_server.attempts(customer) == 1
    })
    .await;
    silent.cancel();
    service.terminate().unwrap();
    assert_eq!(service.wait().await.unwrap().code(), Some(0));
}

/// The next mail that the server accepts.
async fn next_mail(kept: &mut mpsc::UnboundedReceiver<String>) -> String {
    let next = tokio::time::timeout(test::TIMEOUT, kept.recv()).await;
    next.unwrap().unwrap()
}

/// A reply that comes when nobody waits for it any more does not count for another mail.
#[tokio::test]
async fn a_mail_that_is_accepted_late_decides_over_no_other() {
    let Mailing {
        service: _service,
        mail_server,
        mut kept,
        database,
        jetstream,
        installation: _installation,
    } = Mailing::start().await;
    mail_server.busy.store(false, Ordering::Relaxed);
    let (late, refused) = (CustomerId::new(), CustomerId::new());
    mail_server.treat(late, Treatment::AcceptLate);
    mail_server.treat(refused, Treatment::RefuseMail("451 come back later"));
    let order = OrderId::new();
    publish_event(&jetstream, order, confirmed(order, late)).await;
    eventually("the service has given up waiting", async || {
        let retried = "SELECT count(*) FROM notifications
            WHERE mail_attempts > 0 AND mail_due_at < now() + interval '15 seconds'
                AND created_at < now() - interval '5 seconds'";
        let retried = sqlx::query_scalar::<_, i64>(retried);
        retried.fetch_one(&database).await.unwrap() == 1
    })
    .await;
    mail_server.treat(late, Treatment::Accept);
    mail_server.released.send_replace(true);
    // The first one too late, the second one in time.
    for _ in 0..2 {
        assert!(next_mail(&mut kept).await.contains(&order.to_string()));
    }

    let order = OrderId::new();
    publish_event(&jetstream, order, confirmed(order, refused)).await;
    eventually("it is refused twice", async || {
        mail_server.attempts(refused) >= 2
    })
    .await;
    mail_server.treat(refused, Treatment::Accept);
    while !next_mail(&mut kept).await.contains(&order.to_string()) {}
}

#[tokio::test]
async fn a_mail_whose_outcome_cannot_be_recorded_at_once_is_sent_once() {
    let mailing = Mailing::start().await;
    mailing.mail_server.busy.store(false, Ordering::Relaxed);
    let fail_twice = "
        CREATE SEQUENCE records;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('records') % 3 <> 0 THEN RAISE EXCEPTION 'injected failure'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail BEFORE UPDATE ON notifications FOR EACH ROW
            WHEN (NEW.mail_due_at IS NULL) EXECUTE FUNCTION fail()";
    sqlx::raw_sql(fail_twice)
        .execute(&mailing.database)
        .await
        .unwrap();
    // On a machine that pauses the lease may end before.
    for nth in 1..=5 {
        let customer = CustomerId::new();
        let order = OrderId::new();
        publish_event(&mailing.jetstream, order, confirmed(order, customer)).await;
        eventually("the outcome is recorded", async || {
            let recorded = "SELECT count(*) FROM notifications
                WHERE mail_attempts > 0 AND mail_due_at IS NULL";
            let recorded = sqlx::query_scalar::<_, i64>(recorded);
            recorded.fetch_one(&mailing.database).await.unwrap() == nth
        })
        .await;
        if mailing.mail_server.attempts(customer) == 1 {
            return;
        }
    }
    panic!("every mail was sent more than once");
}

#[tokio::test]
async fn an_outcome_that_is_recorded_late_leaves_the_lease_of_another_replica_alone() {
    let mailing = Mailing::start().await;
    let hold_back = "
        CREATE TABLE released ();
        CREATE SEQUENCE failed;
        CREATE SEQUENCE recorded;
        CREATE FUNCTION hold_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF current_query() NOT LIKE '-- mails_record_outcome%' THEN RETURN NULL; END IF;
            IF NOT EXISTS (SELECT FROM released) THEN
                PERFORM nextval('failed');
                RAISE EXCEPTION 'not yet';
            END IF;
            PERFORM nextval('recorded');
            RETURN NULL;
        END $$;
        CREATE TRIGGER hold_back BEFORE UPDATE ON notifications
            FOR EACH STATEMENT EXECUTE FUNCTION hold_back()";
    sqlx::raw_sql(hold_back)
        .execute(&mailing.database)
        .await
        .unwrap();
    let called = async |sequence: &'static str| {
        let called = sqlx::query_scalar::<_, bool>(sequence);
        called.fetch_one(&mailing.database).await.unwrap()
    };
    // On a machine that pauses the lease may end before.
    for _ in 0..5 {
        sqlx::raw_sql("TRUNCATE released; ALTER SEQUENCE failed RESTART")
            .execute(&mailing.database)
            .await
            .unwrap();
        let customer = CustomerId::new();
        mailing
            .mail_server
            .treat(customer, Treatment::RefuseRecipient("451 come back later"));
        let (order, began) = (OrderId::new(), Instant::now());
        publish_event(&mailing.jetstream, order, confirmed(order, customer)).await;
        eventually("the first attempt to record it fails", async || {
            called("SELECT is_called FROM failed").await
        })
        .await;
        let lease = "UPDATE notifications
            SET mail_attempts = mail_attempts + 1, mail_due_at = now() + interval '1 hour'
            WHERE order_id = $1";
        let lease = sqlx::query(lease).bind(order.0).execute(&mailing.database);
        lease.await.unwrap();
        sqlx::query("INSERT INTO released DEFAULT VALUES")
            .execute(&mailing.database)
            .await
            .unwrap();
        eventually("a later attempt succeeds, or is too late", async || {
            called("SELECT is_called FROM recorded").await || began.elapsed() > 2 * LEASE
        })
        .await;
        if called("SELECT is_called FROM recorded").await {
            let left = "SELECT mail_due_at > now() + interval '30 minutes' FROM notifications
                WHERE order_id = $1";
            let left = sqlx::query_scalar::<_, bool>(left).bind(order.0);
            assert!(left.fetch_one(&mailing.database).await.unwrap());
            return;
        }
    }
    panic!("no outcome was recorded before the end of its lease");
}

/// A newer replica has written it.
#[tokio::test]
async fn a_notification_of_an_unknown_kind_holds_up_no_other() {
    let mut mailing = Mailing::start().await;
    let drop = "ALTER TABLE notifications DROP CONSTRAINT notifications_kind_known";
    sqlx::query(drop).execute(&mailing.database).await.unwrap();
    let order = OrderId::new();
    // Both are due at once.
    let insert = "INSERT INTO notifications
            (notification_id, order_id, customer_id, kind, created_at, mail_due_at)
        SELECT gen_random_uuid(), $1, $1, kind, now(), now()
        FROM unnest(ARRAY['order_shipped', 'order_confirmed']) AS n (kind)";
    let insert = sqlx::query(insert).bind(order.0).execute(&mailing.database);
    insert.await.unwrap();
    assert!(
        next_mail(&mut mailing.kept)
            .await
            .contains(&order.to_string())
    );
    let attempts = "SELECT mail_attempts FROM notifications WHERE kind = 'order_shipped'";
    let attempts = sqlx::query_scalar::<_, i32>(attempts).fetch_one(&mailing.database);
    assert_eq!(attempts.await.unwrap(), 0, "a newer replica sends it");
    let mut client = Client::connect(mailing.service.url.clone()).await.unwrap();
    let known = notifications(&mut client, order).await;
    assert_eq!(known, [NotificationKind::OrderConfirmed]);
}

/// The customers whose mails were given up, with attempts and reason, ordered by reason.
async fn given_up(database: &PgPool) -> Vec<(CustomerId, i32, String)> {
    let given_up = "SELECT customer_id, mail_attempts, mail_given_up_reason FROM notifications
        WHERE mail_given_up_at IS NOT NULL AND mail_due_at IS NULL ORDER BY mail_given_up_reason";
    let rows = sqlx::query_as::<_, (Uuid, i32, String)>(given_up);
    let rows = rows.fetch_all(database).await.unwrap().into_iter();
    rows.map(|(customer, attempts, reason)| (CustomerId(customer), attempts, reason))
        .collect()
}

async fn metrics(service: &Program) -> String {
    let address = service.admin.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /metrics HTTP/1.0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn a_mail_that_is_refused_for_good_is_given_up_and_holds_up_no_other() {
    let Mailing {
        service,
        mail_server,
        mut kept,
        database,
        jetstream,
        installation: _installation,
    } = Mailing::start().await;
    let treated = [
        Treatment::RefuseRecipient("550 no such mailbox"),
        // PostgreSQL stores no NUL.
        Treatment::RefuseMail("554 \0spam"),
        Treatment::RefuseRecipient("451 come back later"),
        Treatment::RefuseRecipient("451 never in the mood"),
        Treatment::RefuseRecipient("535 who are you"),
        Treatment::RefuseRecipient("554 5.7.1 nothing is relayed for you"),
        Treatment::RefuseRecipient("550 5.4.5 that is enough for today"),
        Treatment::Hold,
    ]
    .map(|treatment| {
        let customer = CustomerId::new();
        mail_server.treat(customer, treatment);
        customer
    });
    let [
        unknown,
        spam,
        greylisted,
        moody,
        stranger,
        outsider,
        limited,
        held,
    ] = treated;
    let others: Vec<_> = (0..20).map(|_| CustomerId::new()).collect();
    for customer in treated.iter().chain(&others) {
        let order = OrderId::new();
        publish_event(&jetstream, order, confirmed(order, *customer)).await;
    }

    let mut mails: Vec<String> = Vec::new();
    let mut mailed = |customer: &CustomerId| {
        while let Ok(mail) = kept.try_recv() {
            mails.push(mail);
        }
        let to = format!("To: {customer}@");
        mails.iter().any(|mail| mail.contains(&to))
    };
    eventually("the others have their mails", async || {
        others.iter().all(&mut mailed)
    })
    .await;
    eventually("two mails are given up", async || {
        given_up(&database).await.len() == 2
    })
    .await;
    let refusals = given_up(&database).await;
    assert_eq!(refusals[0].0, unknown);
    assert!(refusals[0].2.contains("no such mailbox"), "{refusals:?}");
    assert_eq!(refusals[1].0, spam);
    assert!(refusals[1].2.contains("554"), "{refusals:?}");

    // What is refused for now, or because of the session, is tried again.
    eventually("other refusals are tried again", async || {
        let again = |customer| mail_server.attempts(customer) > 1;
        [greylisted, moody, stranger, outsider, limited]
            .into_iter()
            .all(again)
    })
    .await;
    mail_server.treat(greylisted, Treatment::Accept);
    mail_server.treat(stranger, Treatment::Accept);
    let last = "UPDATE notifications SET mail_attempts = 56 WHERE customer_id = $1";
    let last = sqlx::query(last).bind(moody.0).execute(&database).await;
    last.unwrap();
    // On a slow machine the next attempts may be minutes away.
    let due = "UPDATE notifications SET mail_due_at = now()
        WHERE mail_due_at IS NOT NULL AND customer_id = ANY($1)";
    let waiting = vec![greylisted.0, moody.0, stranger.0];
    let due = sqlx::query(due).bind(waiting).execute(&database).await;
    due.unwrap();
    assert!(!mailed(&held));
    mail_server.released.send_replace(true);
    eventually("they are mailed", async || {
        [greylisted, stranger, held].iter().all(&mut mailed)
    })
    .await;
    eventually("attempts have an end", async || {
        given_up(&database).await.len() == 3
    })
    .await;
    let mut given_up = given_up(&database).await;
    given_up.retain(|(customer, ..)| *customer != moody);
    assert_eq!(given_up, refusals);
    assert_eq!(refusals[0].1, 1);
    assert_eq!(mail_server.attempts(unknown), 1);
    let metrics = metrics(&service).await;
    let counted = |line: &str| {
        line.starts_with("notification_mails_total{") && line.contains("outcome=\"given_up\"")
    };
    let counted: Vec<_> = metrics.lines().filter(|line| counted(line)).collect();
    assert!(
        counted.len() == 1 && counted[0].ends_with(" 3"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_mail_that_was_given_up_is_sent_when_it_is_made_due_again() {
    let Mailing {
        service: _service,
        mail_server,
        mut kept,
        database,
        jetstream,
        installation: _installation,
    } = Mailing::start().await;
    let (order, customer) = (OrderId::new(), CustomerId::new());
    mail_server.treat(customer, Treatment::RefuseRecipient("550 no such mailbox"));
    publish_event(&jetstream, order, confirmed(order, customer)).await;
    eventually("the mail is given up", async || {
        !given_up(&database).await.is_empty()
    })
    .await;
    mail_server.treat(customer, Treatment::Accept);
    let again = "UPDATE notifications SET mail_due_at = now(), mail_attempts = 0
        WHERE mail_given_up_at IS NOT NULL";
    sqlx::query(again).execute(&database).await.unwrap();
    kept.recv().await.unwrap();
    eventually("it is not given up any more", async || {
        let sent = "SELECT count(*) FROM notifications WHERE mail_due_at IS NULL
            AND mail_given_up_at IS NULL AND mail_given_up_reason IS NULL";
        let sent = sqlx::query_scalar::<_, i64>(sent).fetch_one(&database);
        sent.await.unwrap() == 1
    })
    .await;
}

#[tokio::test]
async fn a_mail_about_a_cancellation_waits_for_one_about_the_confirmation_that_is_on_its_way() {
    let Mailing {
        service: _service,
        mail_server,
        mut kept,
        database,
        jetstream,
        installation: _installation,
    } = Mailing::start().await;
    mail_server.busy.store(false, Ordering::Relaxed);
    let (order, customer) = (OrderId::new(), CustomerId::new());
    mail_server.treat(customer, Treatment::Hold);
    publish_event(&jetstream, order, confirmed(order, customer)).await;
    eventually("the confirmation is on its way", async || {
        mail_server.attempts(customer) == 1
    })
    .await;
    for (event, kind) in [
        (cancelled(order), "order_cancelled"),
        (refunded(order), "payment_refunded"),
    ] {
        publish_event(&jetstream, order, event).await;
        eventually("the notification is recorded", async || {
            let recorded = "SELECT count(*) FROM notifications WHERE kind = $1";
            let recorded = sqlx::query_scalar::<_, i64>(recorded).bind(kind);
            recorded.fetch_one(&database).await.unwrap() == 1
        })
        .await;
        let waits = "SELECT coalesce(mail_due_at > created_at + interval '2 seconds', false)
            FROM notifications WHERE kind = $1";
        let waits = sqlx::query_scalar::<_, bool>(waits).bind(kind);
        assert!(
            waits.fetch_one(&database).await.unwrap(),
            "{kind} does not wait"
        );
    }

    mail_server.released.send_replace(true);
    let mail = next_mail(&mut kept).await;
    assert!(mail.contains("confirmed"), "{mail}");
    let due = "UPDATE notifications SET mail_due_at = now() WHERE kind = 'order_cancelled'";
    sqlx::query(due).execute(&database).await.unwrap();
    let mail = next_mail(&mut kept).await;
    assert!(mail.contains("cancelled"), "{mail}");
}

#[tokio::test]
async fn a_customer_is_notified_once_however_often_the_event_is_published() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let broker_url = broker.url();
    let settings = [("DATABASE_URL", url.as_str()), ("NATS_URL", &broker_url)];
    let replicas =
        try_join_all((0..2).map(|_| Program::start(env!("CARGO_BIN_EXE_notification"), &settings)));
    let replicas = replicas.await.unwrap();
    let mut clients = Vec::new();
    for replica in &replicas {
        clients.push(Client::connect(replica.url.clone()).await.unwrap());
    }
    let jetstream = devstack::jetstream::open(&broker.url()).await.unwrap();
    let orders: Vec<OrderId> = (0..50).map(|_| OrderId::new()).collect();
    for order in orders.iter().chain(&orders).chain(&orders) {
        publish(&jetstream, *order).await;
    }
    let applied = "SELECT count(*) FROM inbox";
    eventually("the events are applied", async || {
        let applied = sqlx::query_scalar::<_, i64>(applied);
        applied.fetch_one(&database).await.unwrap() == 150
    })
    .await;
    for order in orders {
        assert_eq!(
            notifications(&mut clients[0], order).await,
            [NotificationKind::OrderConfirmed]
        );
        assert_eq!(
            notifications(&mut clients[1], order).await,
            [NotificationKind::OrderConfirmed]
        );
    }
    assert!(
        notifications(&mut clients[0], OrderId::new())
            .await
            .is_empty()
    );
    let request = ListNotificationsRequest {
        order_id: "mine".to_owned(),
    };
    let status = clients[0].list_notifications(request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "order_id: expected a UUID")
    );
}

#[tokio::test]
async fn a_customer_is_not_told_of_a_confirmation_after_the_cancellation() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let broker_url = broker.url();
    let settings = [("DATABASE_URL", url.as_str()), ("NATS_URL", &broker_url)];
    let start = || Program::start(env!("CARGO_BIN_EXE_notification"), &settings);
    let service = start().await.unwrap();
    let jetstream = devstack::jetstream::open(&broker.url()).await.unwrap();
    let applied = async |events: i64| {
        eventually("the events are applied", async || {
            let inbox = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM inbox");
            inbox.fetch_one(&database).await.unwrap() == events
        })
        .await;
    };
    // One after the other, and both in one batch, which waits while no replica runs.
    let (apart, together, refund_first) = (OrderId::new(), OrderId::new(), OrderId::new());
    publish_event(&jetstream, apart, cancelled(apart)).await;
    publish_event(&jetstream, refund_first, refunded(refund_first)).await;
    applied(2).await;
    publish(&jetstream, apart).await;
    publish(&jetstream, refund_first).await;
    applied(4).await;
    service.kill().await.unwrap();
    publish_event(&jetstream, together, cancelled(together)).await;
    publish(&jetstream, together).await;
    let service = start().await.unwrap();
    applied(6).await;
    let mut client = Client::connect(service.url.clone()).await.unwrap();
    for (order, told) in [
        (apart, NotificationKind::OrderCancelled),
        (together, NotificationKind::OrderCancelled),
        (refund_first, NotificationKind::PaymentRefunded),
    ] {
        assert_eq!(notifications(&mut client, order).await, [told]);
    }
}
