//! Connecting to the broker and reading streams, here for everything under `tools/` and for tests:
//! the futures of async-nats are large, and their machine code is generated where they are awaited.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use async_nats::{
    Client, ConnectOptions, HeaderMap,
    jetstream::{
        self, Message,
        consumer::{AckPolicy, PullConsumer, pull},
    },
};
use futures::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
};
use tokio::time::timeout;

/// Messages per request.
const PAGE: usize = 500;
/// How long the broker may take for the next message that it has.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take, and the response to a request. Generous: a slow machine is no
/// failure.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// After this time the broker forgets a reader that has ended without saying so.
const READER_EXPIRES: Duration = Duration::from_secs(60);

/// A message as a stream holds it.
#[derive(Clone, Debug)]
pub struct StreamMessage {
    pub subject: String,
    pub headers: Option<HeaderMap>,
    pub payload: Vec<u8>,
    /// Its position in the stream, from 1.
    pub sequence: u64,
}

/// Which part of the messages is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Headers,
    Whole,
}

/// Connects to the broker at `url`, or to one of several that commas separate, as the user in it.
pub fn connect(options: ConnectOptions, url: &str) -> BoxFuture<'_, anyhow::Result<Client>> {
    async move {
        let (url, options) = with_certificate(url, options);
        let (servers, user) = without_user(url);
        // The client takes no user from an address.
        let options = match user {
            Some((user, password)) => options.user_and_password(user, password),
            None => options,
        };
        let options = options.connection_timeout(CONNECT_TIMEOUT);
        let connected = options.connect(&servers).await;
        connected.with_context(|| format!("connect to NATS at {}", servers.join(",")))
    }
    .boxed()
}

/// The streams of the broker at `url`, as the user in it.
pub fn open(url: &str) -> BoxFuture<'_, anyhow::Result<jetstream::Context>> {
    async move { Ok(context(connect(ConnectOptions::new(), url).await?)) }.boxed()
}

/// The streams of the broker that the client is connected to.
pub fn context(client: Client) -> jetstream::Context {
    let mut context = jetstream::new(client);
    context.set_timeout(REQUEST_TIMEOUT);
    context
}

/// `url` without `?tls_dir=`, the directory of the certificate with which the client is known.
fn with_certificate(url: &str, options: ConnectOptions) -> (&str, ConnectOptions) {
    let Some((url, directory)) = url.split_once("?tls_dir=") else {
        return (url, options);
    };
    let directory = Path::new(directory);
    let options = options
        .require_tls(true)
        .add_root_certificates(directory.join("ca.crt"))
        .add_client_certificate(directory.join("tls.crt"), directory.join("tls.key"));
    (url, options)
}

/// The addresses in `url`, and the user and password of the last that has them.
fn without_user(url: &str) -> (Vec<String>, Option<(String, String)>) {
    let mut found = None;
    let servers = url.split(',').map(|server| {
        let parts = server.split_once("://");
        let parts = parts.and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
        let Some((scheme, (user, host))) = parts else {
            return server.to_owned();
        };
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        found = Some((user.to_owned(), password.to_owned()));
        format!("{scheme}://{host}")
    });
    (servers.collect(), found)
}

/// Publishes a message past any outbox, and waits until the broker has it: for operators' tools,
/// and for tests that stand for a service.
pub fn publish<'a>(
    jetstream: &'a jetstream::Context,
    subject: String,
    headers: HeaderMap,
    payload: Vec<u8>,
) -> BoxFuture<'a, anyhow::Result<()>> {
    async move {
        #[expect(
            clippy::disallowed_methods,
            reason = "no service of the system publishes with it"
        )]
        let published = jetstream.publish_with_headers(subject, headers, payload.into());
        published.await?.await?;
        Ok(())
    }
    .boxed()
}

/// All messages that are in a stream now, oldest first.
pub async fn read_stream(
    jetstream: &jetstream::Context,
    stream: &str,
) -> anyhow::Result<Vec<StreamMessage>> {
    let mut messages = Vec::new();
    let mut take = |message: Message| {
        let info = message.info().map_err(anyhow::Error::from_boxed)?;
        messages.push(StreamMessage {
            subject: message.subject.to_string(),
            headers: message.headers.clone(),
            payload: message.payload.to_vec(),
            sequence: info.stream_sequence,
        });
        Ok(())
    };
    for_each_message(jetstream, stream, Part::Whole, &mut take).await?;
    Ok(messages)
}

/// Hands every message that is in a stream now to `take`, oldest first.
pub fn for_each_message<'a>(
    jetstream: &'a jetstream::Context,
    stream: &'a str,
    part: Part,
    take: &'a mut (dyn FnMut(Message) -> anyhow::Result<()> + Send),
) -> BoxFuture<'a, anyhow::Result<()>> {
    let read = async move {
        let mut stream = jetstream.get_stream(stream).await?;
        let last = stream.info().await?.state.last_sequence;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            headers_only: part == Part::Headers,
            inactive_threshold: READER_EXPIRES,
            ..pull::Config::default()
        };
        let reader = stream.create_consumer(config).await?;
        let read = read_until(&reader, last, take).await;
        // Without this the broker drops it when it expires.
        let _dropped = stream.delete_consumer(&reader.cached_info().name).await;
        read
    };
    async move {
        read.await
            .with_context(|| format!("read the stream {stream}"))
    }
    .boxed()
}

/// Reads up to the sequence `last`. Others may delete messages meanwhile: the end is an empty page,
/// not a number of messages.
async fn read_until(
    reader: &PullConsumer,
    last: u64,
    take: &mut (dyn FnMut(Message) -> anyhow::Result<()> + Send),
) -> anyhow::Result<()> {
    let (mut sequence, mut delivered) = (0, 0);
    while sequence < last {
        let mut page = reader.fetch().max_messages(PAGE).messages().await?;
        let mut is_empty = true;
        while let Some(message) = timeout(READ_TIMEOUT, page.next())
            .await
            .context("the broker does not answer")?
        {
            let message = message.map_err(anyhow::Error::from_boxed)?;
            is_empty = false;
            let info = message.info().map_err(anyhow::Error::from_boxed)?;
            sequence = info.stream_sequence;
            delivered += 1;
            // Nothing is delivered a second time to a reader that does not acknowledge.
            ensure!(
                info.consumer_sequence == delivered,
                "a message was lost on its way"
            );
            if sequence <= last {
                take(message)?;
            }
        }
        if is_empty {
            break;
        }
    }
    Ok(())
}
