//! Two replicas of the notification service as processes, in front of a real database and broker; the test speaks as
//! the order service.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant};

use async_nats::jetstream;
use contracts::{CorrelationId, CustomerId, Envelope, Event, EventId, Money, OrderId, choreography::Service};
use devstack::test::{self, Program};
use futures::future::try_join_all;
use proto::{
    notification::v1::{
        ListNotificationsRequest, NotificationKind, notification_service_client::NotificationServiceClient,
    },
    order::v1::OrderConfirmed,
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

/// Says that an order was confirmed, under another event id each time: neither broker nor inbox knows it again.
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
    let published = jetstream.publish_with_headers(event.subject().as_str(), headers, event.encode().into());
    published.await.unwrap().await.unwrap();
}

async fn told(client: &mut Client, order: OrderId) -> Vec<NotificationKind> {
    let request = ListNotificationsRequest { order_id: order.to_string() };
    let answer = client.list_notifications(request).await.unwrap().into_inner();
    answer.notifications.iter().map(|notification| notification.kind()).collect()
}

#[tokio::test]
async fn a_customer_is_told_once_whoever_hears_it_and_however_often() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let broker_url = broker.url();
    let settings = [("DATABASE_URL", url.as_str()), ("NATS_URL", &broker_url)];
    let replicas = try_join_all((0..2).map(|_| Program::start(env!("CARGO_BIN_EXE_notification"), &settings)));
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
    while sqlx::query_scalar::<_, i64>(heard).fetch_one(&database).await.unwrap() < 150 {
        assert!(Instant::now() < until, "the events were not heard");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for order in orders {
        assert_eq!(told(&mut clients[0], order).await, [NotificationKind::OrderConfirmed]);
        assert_eq!(told(&mut clients[1], order).await, [NotificationKind::OrderConfirmed]);
    }
    assert!(told(&mut clients[0], OrderId::new()).await.is_empty());
    let request = ListNotificationsRequest { order_id: "mine".to_owned() };
    let status = clients[0].list_notifications(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "order_id: expected a UUID"));
}
