//! Two replicas of the notification service as processes, in front of a real database and broker;
//! the test speaks as the order service.
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
    CorrelationId, CustomerId, Envelope, Event, EventId, Money, OrderId, choreography::Service,
};
use devstack::test::{self, Program};
use futures::future::try_join_all;
use proto::{
    notification::v1::{
        ListNotificationsRequest, NotificationKind,
        notification_service_client::NotificationServiceClient,
    },
    order::v1::OrderConfirmed,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::{Code, transport::Channel};

type Client = NotificationServiceClient<Channel>;

fn confirmed(order: OrderId) -> Event {
    Event::OrderConfirmed(OrderConfirmed {
        order_id: order.to_string(),
        customer_id: CustomerId::new().to_string(),
        total: Some(Money::new(100, "EUR").unwrap().into()),
    })
}

/// Says that an order was confirmed, under another event id each time: neither broker nor inbox
/// knows it again.
async fn say(jetstream: &jetstream::Context, order: OrderId) {
    let event = confirmed(order);
    let envelope = Envelope {
        event_id: EventId::new(),
        subject: event.subject(),
        order_id: order,
        time: time::OffsetDateTime::now_utc(),
        correlation_id: CorrelationId::new(),
        causation_id: EventId::new(),
        traceparent: None,
    };
    let headers = envelope.to_headers(Service::Order);
    #[expect(clippy::disallowed_methods, reason = "the test is the order service")]
    let published =
        jetstream.publish_with_headers(event.subject().as_str(), headers, event.encode().into());
    published.await.unwrap().await.unwrap();
}

async fn told(client: &mut Client, order: OrderId) -> Vec<NotificationKind> {
    let request = ListNotificationsRequest {
        order_id: order.to_string(),
    };
    let answer = client
        .list_notifications(request)
        .await
        .unwrap()
        .into_inner();
    answer
        .notifications
        .iter()
        .map(|notification| notification.kind())
        .collect()
}

/// A mail server that has no time for the first mail, keeps the others, and says whose order each
/// is about.
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

/// RFC 5321, as far as a client needs it that is served well.
async fn serve_mail(
    stream: TcpStream,
    kept: mpsc::UnboundedSender<String>,
    busy: Arc<AtomicBool>,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    writer.write_all(b"220 ready\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        let answer: &[u8] = match line.get(..4) {
            Some("DATA") if busy.swap(false, Ordering::Relaxed) => b"451 try again later\r\n",
            Some("DATA") => {
                writer.write_all(b"354 go on\r\n").await?;
                let mut mail = String::new();
                while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                    mail.push_str(&line);
                    mail.push('\n');
                }
                let _nobody_reads_any_more = kept.send(mail);
                b"250 kept\r\n"
            }
            Some("QUIT") => b"221 bye\r\n",
            _ => b"250 fine\r\n",
        };
        writer.write_all(answer).await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_notification_is_mailed_even_if_the_mail_server_is_busy_or_the_service_killed() {
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
        say(&jetstream, *order).await;
    }
    let mut mails = vec![kept.recv().await.unwrap()];
    first.kill().await.unwrap();
    // What it had taken comes when its lease has run out; the test does not wait for that.
    sqlx::query("UPDATE notifications SET mail_due_at = now() WHERE mail_due_at IS NOT NULL")
        .execute(&database)
        .await
        .unwrap();
    let _second = start().await;
    let due = "SELECT count(*) FROM notifications WHERE mail_due_at IS NOT NULL";
    let until = Instant::now() + Duration::from_secs(60);
    let told = "SELECT count(*) FROM notifications";
    let count = async |query: &'static str| {
        sqlx::query_scalar::<_, i64>(query)
            .fetch_one(&database)
            .await
            .unwrap()
    };
    while count(told).await < 20 || count(due).await > 0 {
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
async fn a_customer_is_told_once_whoever_hears_it_and_however_often() {
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
        say(&jetstream, *order).await;
    }
    let heard = "SELECT count(*) FROM inbox";
    let until = Instant::now() + Duration::from_secs(60);
    while sqlx::query_scalar::<_, i64>(heard)
        .fetch_one(&database)
        .await
        .unwrap()
        < 150
    {
        assert!(Instant::now() < until, "the events were not heard");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for order in orders {
        assert_eq!(
            told(&mut clients[0], order).await,
            [NotificationKind::OrderConfirmed]
        );
        assert_eq!(
            told(&mut clients[1], order).await,
            [NotificationKind::OrderConfirmed]
        );
    }
    assert!(told(&mut clients[0], OrderId::new()).await.is_empty());
    let request = ListNotificationsRequest {
        order_id: "mine".to_owned(),
    };
    let status = clients[0].list_notifications(request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "order_id: expected a UUID")
    );
}
