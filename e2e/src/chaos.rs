//! What a broker or a network may do to events: deliver them twice, in the wrong order, or
//! malformed.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID, jetstream};
use contracts::Service;
use devstack::test::{StreamMessage, read_stream};
use futures::StreamExt as _;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Message {
    pub subject: String,
    pub headers: Option<HeaderMap>,
    pub payload: Vec<u8>,
}

impl From<StreamMessage> for Message {
    fn from(message: StreamMessage) -> Self {
        Self {
            subject: message.subject,
            headers: message.headers,
            payload: message.payload,
        }
    }
}

/// Marks copies, so that they are not copied again.
const COPY: &str = "copy";

/// Publishes a message as no service would: a copy, or a malformed event. Its message id is new, so
/// that the broker does not drop it as a repetition.
pub async fn publish(jetstream: &jetstream::Context, message: Message) -> anyhow::Result<()> {
    let mut headers = message.headers.unwrap_or_default();
    headers.insert(NATS_MESSAGE_ID, Uuid::now_v7().to_string());
    headers.insert(COPY, "yes");
    let Message {
        subject, payload, ..
    } = message;
    devstack::jetstream::publish(jetstream, subject, headers, payload).await
}

/// Reverses a stream: every later reader gets the latest event first. Returns the number of events.
pub async fn reverse(jetstream: &jetstream::Context, name: &str) -> anyhow::Result<usize> {
    let messages = read_stream(jetstream, name).await?;
    jetstream.get_stream(name).await?.purge().await?;
    let count = messages.len();
    for message in messages.into_iter().rev() {
        publish(jetstream, message.into()).await?;
    }
    Ok(count)
}

/// Publishes every event a second time as soon as it appears, until the task is aborted.
pub async fn duplicate_all(url: &str) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let client = devstack::jetstream::connect(async_nats::ConnectOptions::new(), url).await?;
    let jetstream = devstack::jetstream::context(client.clone());
    let mut subscriptions = Vec::new();
    for owner in Service::ALL
        .into_iter()
        .filter(|owner| owner.stream().is_some())
    {
        subscriptions.push(client.subscribe(format!("{owner}.>")).await?);
    }
    client.flush().await?;
    let mut messages = futures::stream::select_all(subscriptions);
    Ok(tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            let headers = message.headers;
            if headers
                .as_ref()
                .is_none_or(|headers| headers.get(COPY).is_none())
            {
                let (subject, payload) = (message.subject.to_string(), message.payload.to_vec());
                let copy = Message {
                    subject,
                    headers,
                    payload,
                };
                publish(&jetstream, copy).await?;
            }
        }
        Ok(())
    }))
}
