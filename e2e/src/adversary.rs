//! What the world may do to events: deliver them twice, deliver them in a wrong order, deliver
//! rubbish.

use anyhow::Context as _;
use async_nats::{HeaderMap, jetstream};
use contracts::header;
use futures::{StreamExt as _, TryStreamExt as _};
use uuid::Uuid;

/// A message as a stream holds it.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Marks copies, so that they are not copied again.
const COPY: &str = "copy";

/// All messages of a stream, oldest first.
pub async fn read(jetstream: &jetstream::Context, name: &str) -> anyhow::Result<Vec<Message>> {
    let mut stream = jetstream.get_stream(name).await?;
    let count = stream.info().await?.state.messages;
    let mut all = stream
        .create_consumer(jetstream::consumer::pull::OrderedConfig::default())
        .await?
        .messages()
        .await?;
    let mut messages = Vec::new();
    for _ in 0..count {
        let message = all.try_next().await?.context("the stream ended early")?;
        messages.push(Message {
            subject: message.subject.to_string(),
            headers: message.headers.clone(),
            payload: message.payload.to_vec(),
        });
    }
    Ok(messages)
}

/// Publishes what no service would: a copy, or rubbish. The broker does not recognize copies.
pub async fn publish(jetstream: &jetstream::Context, message: Message) -> anyhow::Result<()> {
    let mut headers = message.headers.unwrap_or_default();
    headers.insert(header::NATS_MSG_ID, Uuid::now_v7().to_string());
    headers.insert(COPY, "yes");
    #[expect(clippy::disallowed_methods, reason = "an adversary keeps to no rules")]
    let published =
        jetstream.publish_with_headers(message.subject, headers, message.payload.into());
    published.await?.await?;
    Ok(())
}

/// Turns a stream upside down: the latest event comes first. Everybody who reads it later gets it
/// in this order.
pub async fn reverse(jetstream: &jetstream::Context, name: &str) -> anyhow::Result<usize> {
    let messages = read(jetstream, name).await?;
    let stream = jetstream.get_stream(name).await?;
    stream.purge().await?;
    let count = messages.len();
    for message in messages.into_iter().rev() {
        publish(jetstream, message).await?;
    }
    Ok(count)
}

/// From now on publishes every event a second time, as soon as it appears; until the task is
/// aborted.
pub async fn double(url: &str) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<()>>> {
    let client = async_nats::connect(url).await?;
    let jetstream = jetstream::new(client.clone());
    let mut subscriptions = Vec::new();
    for owner in ["order", "payment", "inventory"] {
        subscriptions.push(client.subscribe(format!("{owner}.>")).await?);
    }
    client.flush().await?;
    let mut messages = futures::stream::select_all(subscriptions);
    Ok(tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            if message
                .headers
                .as_ref()
                .is_none_or(|headers| headers.get(COPY).is_none())
            {
                let (subject, payload) = (message.subject.to_string(), message.payload.to_vec());
                publish(
                    &jetstream,
                    Message {
                        subject,
                        headers: message.headers,
                        payload,
                    },
                )
                .await?;
            }
        }
        Ok(())
    }))
}
