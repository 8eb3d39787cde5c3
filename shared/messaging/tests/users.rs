//! The users of NATS: the file is rendered from the choreography, and the broker enforces it.
//! `UPDATE=1 cargo test -p messaging --test users` renders it again.
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(
    clippy::disallowed_methods,
    reason = "this publishes what no service should"
)]

use std::path::Path;

use async_nats::{Client, ConnectOptions, Event};
use contracts::{Service, Subject};
use devstack::{
    NatsServer,
    test::{self, broker_with_users},
};
use messaging::{Broker, Login, permissions, topology};
use tokio::sync::mpsc;

#[test]
fn the_file_of_users_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/nats/users.conf");
    let rendered = permissions::users();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &rendered).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == rendered,
        "deploy/nats/users.conf is stale: UPDATE=1 cargo test -p messaging --test users"
    );
}

/// A user, and what the broker refuses it.
struct User {
    client: Client,
    refused: mpsc::UnboundedReceiver<String>,
}

impl User {
    async fn connect(url: &str, name: &str) -> Self {
        let (report, refused) = mpsc::unbounded_channel();
        let options = ConnectOptions::with_user_and_password(name.into(), "sagacity".into());
        let options = options
            .custom_inbox_prefix(format!("_INBOX_{name}"))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    report.send(error.to_string().to_lowercase()).unwrap();
                }
                std::future::ready(())
            });
        let client = options.connect(url).await.unwrap();
        Self { client, refused }
    }

    async fn must_be_refused(&mut self, what: &str, subject: &str) {
        let refused = tokio::time::timeout(test::TIMEOUT, self.refused.recv()).await;
        let refused = refused.unwrap_or_else(|_| panic!("{what} {subject} is accepted"));
        let refused = refused.unwrap();
        assert!(refused.contains("permissions violation"), "{refused}");
        assert!(
            refused.contains(&subject.to_lowercase()),
            "{subject}: {refused}"
        );
    }
}

async fn server() -> NatsServer {
    let server = broker_with_users().await.unwrap();
    let url = server.url();
    let operator = Broker::connect(
        &url,
        Login {
            user: permissions::OPERATOR,
            password: Some("sagacity"),
            tls_dir: None,
        },
    );
    let operator = operator.await.unwrap();
    topology::reconcile_streams(&operator).await.unwrap();
    server
}

#[tokio::test]
async fn a_service_can_publish_its_own_events_and_no_others() {
    let server = server().await;
    for service in Service::ALL {
        let mut user = User::connect(&server.url(), service.name()).await;
        let jetstream = devstack::jetstream::context(user.client.clone());
        for subject in Subject::ALL {
            if subject.owner() == service {
                let published = jetstream.publish(subject.as_str(), "x".into()).await;
                published.unwrap().await.unwrap();
            } else {
                user.client
                    .publish(subject.as_str(), "x".into())
                    .await
                    .unwrap();
                user.must_be_refused("publish", subject.as_str()).await;
            }
        }
    }
}

#[tokio::test]
async fn a_service_can_neither_read_nor_undo_what_others_do() {
    let server = server().await;
    let mut payment = User::connect(&server.url(), "payment").await;
    for subject in [
        "dlq.order.order.created.v1",
        "redrive.order.order.created.v1",
        "relay.wake.order",
        "$JS.API.STREAM.DELETE.ORDER",
        "$JS.API.STREAM.PURGE.ORDER",
        "$JS.API.STREAM.MSG.DELETE.ORDER",
        "$JS.API.STREAM.DELETE.PAYMENT",
        "$JS.API.STREAM.UPDATE.PAYMENT",
        "$JS.API.STREAM.UPDATE.REDRIVE",
        "$JS.API.DIRECT.GET.DEAD_LETTER",
        "$JS.API.DIRECT.GET.PAYMENT",
        "$JS.API.CONSUMER.DELETE.ORDER.inventory",
        "$JS.API.CONSUMER.CREATE.ORDER.inventory",
        "$JS.API.CONSUMER.CREATE.DEAD_LETTER",
        "$JS.API.CONSUMER.CREATE.DEAD_LETTER.x.dlq.order.>",
        "$JS.API.CONSUMER.MSG.NEXT.ORDER.inventory",
        "$JS.ACK.ORDER.inventory.1.1.1.1.0",
        "_INBOX_order.x",
    ] {
        payment.client.publish(subject, "".into()).await.unwrap();
        payment.must_be_refused("publish", subject).await;
    }
    for subject in [
        ">",
        "order.>",
        "_INBOX.>",
        "_INBOX_order.>",
        "relay.wake.order",
        "$JS.API.>",
    ] {
        let _subscription = payment.client.subscribe(subject).await.unwrap();
        payment.must_be_refused("subscribe", subject).await;
    }
    let mut gateway = User::connect(&server.url(), "gateway").await;
    for subject in ["order.created.v1", "$JS.API.STREAM.INFO.ORDER"] {
        gateway.client.publish(subject, "".into()).await.unwrap();
        gateway.must_be_refused("publish", subject).await;
    }
}

#[tokio::test]
async fn nobody_connects_without_a_password() {
    let server = server().await;
    let wrong = || ConnectOptions::with_user_and_password("order".into(), "guess".into());
    for options in [ConnectOptions::new(), wrong()] {
        assert!(options.connect(server.url()).await.is_err());
    }
}
