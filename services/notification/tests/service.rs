//! The notification service as processes, with a real database and broker. The test publishes as the
//! order service.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contracts::{
    Cause, CorrelationId, CustomerId, Envelope, Event, EventId, Money, OrderId, Service,
};
use devstack::test::{self, Program};
use futures::future::try_join_all;
use proto::{
    notification::v1::{
        ListNotificationsRequest, NotificationKind,
        notification_service_client::NotificationServiceClient,
    },
    order::v1::{OrderCancelled, OrderConfirmed},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::{Code, transport::Channel};

type Client = NotificationServiceClient<Channel>;

fn cancelled(order: OrderId) -> Event {
    Event::OrderCancelled(OrderCancelled {
        order_id: order.to_string(),
        customer_id: CustomerId::new().to_string(),
        reason: 4,
    })
}

fn confirmed(order: OrderId) -> Event {
    Event::OrderConfirmed(OrderConfirmed {
        order_id: order.to_string(),
        customer_id: CustomerId::new().to_string(),
        total: Some(Money::new(100, "EUR".parse().unwrap()).into()),
    })
}

/// Publishes that an order was confirmed, with a new event id each time: neither broker nor inbox can
/// recognize a repetition.
async fn publish(jetstream: &jetstream::Context, order: OrderId) {
    publish_event(jetstream, order, confirmed(order)).await;
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

/// A mail server that refuses the first mail, accepts all others and sends them to the test.
async fn mail_server(kept: mpsc::UnboundedSender<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    let busy = Arc::new(AtomicBool::new(true));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_mail(stream, kept.clone(), Arc::clone(&busy)));
        }
    });
    url
}

/// Just enough of RFC 5321 for a well-behaved client.
async fn serve_mail(
    stream: TcpStream,
    kept: mpsc::UnboundedSender<String>,
    busy: Arc<AtomicBool>,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"220 ready\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        let response: &[u8] = match line.get(..4) {
            Some("DATA") if busy.swap(false, Ordering::Relaxed) => b"451 try again later\r\n",
            Some("DATA") => {
                writer.write_all(b"354 go on\r\n").await?;
                let mut mail = String::new();
                while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                    mail.push_str(&line);
                    mail.push('\n');
                }
                let _test_ended = kept.send(mail);
                b"250 kept\r\n"
            }
            Some("QUIT") => b"221 bye\r\n",
            _ => b"250 fine\r\n",
        };
        writer.write_all(response).await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_notification_is_mailed_even_if_the_mail_server_is_unavailable_or_the_service_killed()
{
    let (sender, mut kept) = mpsc::unbounded_channel();
    let mail_server = mail_server(sender).await;
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let broker_url = broker.url();
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("NATS_URL", &broker_url),
        ("SMTP_URL", &mail_server),
    ];
    let start = async || {
        Program::start(env!("CARGO_BIN_EXE_notification"), &settings)
            .await
            .unwrap()
    };
    let first = start().await;
    let jetstream = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
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
    let _second = start().await;
    let due = "SELECT count(*) FROM notifications WHERE mail_due_at IS NOT NULL";
    let until = Instant::now() + Duration::from_secs(60);
    let all = "SELECT count(*) FROM notifications";
    let count = async |query: &'static str| {
        sqlx::query_scalar::<_, i64>(query)
            .fetch_one(&database)
            .await
            .unwrap()
    };
    while count(all).await < 20 || count(due).await > 0 {
        assert!(
            Instant::now() < until,
            "{} mails still wait",
            count(due).await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    let jetstream = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    let orders: Vec<OrderId> = (0..50).map(|_| OrderId::new()).collect();
    for order in orders.iter().chain(&orders).chain(&orders) {
        publish(&jetstream, *order).await;
    }
    let applied = "SELECT count(*) FROM inbox";
    let until = Instant::now() + Duration::from_secs(60);
    while sqlx::query_scalar::<_, i64>(applied)
        .fetch_one(&database)
        .await
        .unwrap()
        < 150
    {
        assert!(Instant::now() < until, "the events were not applied");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    let jetstream = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    let applied = async |events: i64| {
        test::eventually("the events are applied", async || {
            let inbox = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM inbox");
            inbox.fetch_one(&database).await.unwrap() == events
        })
        .await;
    };
    // One after the other, and both in one batch, which waits while no replica runs.
    let (apart, together) = (OrderId::new(), OrderId::new());
    publish_event(&jetstream, apart, cancelled(apart)).await;
    applied(1).await;
    publish(&jetstream, apart).await;
    applied(2).await;
    service.kill().await.unwrap();
    publish(&jetstream, together).await;
    publish_event(&jetstream, together, cancelled(together)).await;
    let service = start().await.unwrap();
    applied(4).await;
    let mut client = Client::connect(service.url.clone()).await.unwrap();
    for order in [apart, together] {
        assert_eq!(
            notifications(&mut client, order).await,
            [NotificationKind::OrderCancelled]
        );
    }
}
