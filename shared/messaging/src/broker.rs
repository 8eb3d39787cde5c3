//! The connection to NATS. Reconnects indefinitely; callers must expect it to be unavailable at any
//! time.

use std::{path::Path, time::Duration};

use async_nats::{Client, ConnectOptions, Event, connection::State, jetstream};
use backon::Retryable as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{backoff, permissions};

/// The oldest version that does not skip events after a power loss (nats-server #5412 and others).
const OLDEST_SERVER: (u32, u32) = (2, 12);
/// How long to wait for an answer of the broker. A cluster that elects a leader gives none; a
/// longer wait would not help.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Half a million orders and more, at about 3 KB an order in three streams.
pub const STREAM_MAX_BYTES: i64 = 2 * 1024 * 1024 * 1024;

/// A connection and its JetStream context; cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    /// Counts connections; changes wake loops that wait for the broker.
    connections: watch::Receiver<u64>,
    pub(crate) streams: StreamSettings,
    /// Whether it is connected as a user, with the rights of [`permissions`].
    pub(crate) has_user: bool,
}

/// Who connects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Login<'a> {
    /// The user, which is named like the service.
    pub user: &'a str,
    /// Without one the server must not ask for any.
    pub password: Option<&'a str>,
    /// Directory of the certificate (`tls.crt`), its key (`tls.key`) and the authority of the
    /// server (`ca.crt`). Without it the server must not ask for a certificate.
    pub tls_dir: Option<&'a Path>,
}

/// Settings of the streams. All services declare all streams, so that they must agree.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// Bytes of the stream of each publisher.
    pub max_bytes: i64,
    /// Servers of the cluster that keep a copy of each stream.
    pub replicas: usize,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            max_bytes: STREAM_MAX_BYTES,
            replicas: 1,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address is wrong, or there is no encrypted connection.
    #[error("cannot connect to NATS at {url}: check the address and the certificates")]
    Connect {
        /// The address.
        url: String,
        /// The error of the client library.
        source: async_nats::ConnectError,
    },
    /// The server is too old to rely on.
    #[error(
        "nats-server at {url} is version {found}, but at least 2.12 is needed: older ones can skip \
         events after a power loss"
    )]
    TooOld {
        /// The address.
        url: String,
        /// The server's version.
        found: String,
    },
}

impl Broker {
    /// Connects to a server, or to one of several that commas separate, and checks its version.
    /// Waits for a server that is not up yet, or does not know the user yet: services and servers
    /// start in any order.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn connect(url: &str, login: Login<'_>) -> Result<Self, BrokerError> {
        let (connected, connections) = watch::channel(0);
        let servers: Vec<&str> = url.split(',').collect();
        let connect = || async {
            let options = options(login, connected.clone());
            options.connect(&servers).await
        };
        let client = connect
            .retry(backoff::exponential(
                Duration::from_millis(50),
                Duration::from_secs(2),
            ))
            .when(may_come_up)
            .notify(|error, delay| {
                tracing::warn!(broker.url = url, %error,
                    "there is no connection to NATS; the next attempt is in {delay:?}");
            })
            .await
            .map_err(|source| BrokerError::Connect {
                url: url.to_owned(),
                source,
            })?;
        let found = client.server_info().version;
        if version(&found).is_none_or(|version| version < OLDEST_SERVER) {
            return Err(BrokerError::TooOld {
                url: url.to_owned(),
                found,
            });
        }
        let context = jetstream::context::ContextBuilder::new()
            .timeout(ACK_TIMEOUT)
            .ack_timeout(ACK_TIMEOUT);
        let jetstream = context.build(client.clone());
        Ok(Self {
            client,
            jetstream,
            connections,
            streams: StreamSettings::default(),
            has_user: login.password.is_some(),
        })
    }

    /// With other settings of the streams.
    #[must_use]
    pub fn with_streams(self, streams: StreamSettings) -> Self {
        Self { streams, ..self }
    }

    /// How often the connection has been established. A change means that the broker may have lost
    /// what it had not yet written to its disk.
    pub(crate) fn connections(&self) -> u64 {
        *self.connections.borrow()
    }

    /// Tells other processes of the service that there is something to publish. It may be lost.
    pub(crate) async fn hint(&self, subject: &str) {
        #[expect(
            clippy::disallowed_methods,
            reason = "a hint is not an event, and may be lost"
        )]
        if self.is_connected() {
            let _lost = self
                .client
                .publish(subject.to_owned(), Default::default())
                .await;
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Pending until shutdown finds the broker away: a request may then take longer than the
    /// shutdown has time.
    pub(crate) async fn cut_off(&self, shutdown: &CancellationToken) {
        shutdown.cancelled().await;
        while self.is_connected() {
            tokio::time::sleep(backoff::MIN).await;
        }
    }

    /// Waits for `delay`, but not after the connection is back: nothing sleeps through the end of
    /// an outage.
    pub(crate) async fn pause(&self, delay: Duration) {
        // Either way the caller tries again.
        let _elapsed = tokio::time::timeout(delay, self.reconnected()).await;
    }

    /// Returns after the next reconnection: what was sent before has no answer any more.
    pub(crate) async fn reconnected(&self) {
        let mut connections = self.connections.clone();
        connections.borrow_and_update();
        if connections.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until what was sent has left this process; not for longer than a broker takes to
    /// answer.
    pub(crate) async fn flush(&self) {
        let flushed = tokio::time::timeout(FLUSH_TIMEOUT, self.client.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!(
                "the connection to NATS could not be flushed; events are delivered again"
            );
        }
    }
}

fn options(login: Login<'_>, connected: watch::Sender<u64>) -> ConnectOptions {
    let Login {
        user,
        password,
        tls_dir,
    } = login;
    let mut options = match password {
        Some(password) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        None => ConnectOptions::new(),
    };
    // The client reads the files at each connection.
    if let Some(directory) = tls_dir {
        options = options
            .require_tls(true)
            .add_root_certificates(directory.join("ca.crt"))
            .add_client_certificate(directory.join("tls.crt"), directory.join("tls.key"));
    }
    options
        .name(user)
        .custom_inbox_prefix(permissions::inbox_prefix(user))
        .ping_interval(Duration::from_secs(5))
        .reconnect_delay_callback(|attempts| Duration::from_millis(50 << attempts.min(5)))
        .event_callback(move |event| {
            report(&event);
            if event == Event::Connected {
                connected.send_modify(|connections| *connections += 1);
            }
            std::future::ready(())
        })
}

/// The server is away. Or it does not know the user or the password yet: they may be changed at the
/// services first, and a service that is connected waits, too.
fn may_come_up(error: &async_nats::ConnectError) -> bool {
    use async_nats::ConnectErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::Io
            | Kind::TimedOut
            | Kind::Dns
            | Kind::MaxReconnects
            | Kind::Authentication
            | Kind::AuthorizationViolation
    )
}

fn report(event: &Event) {
    match event {
        Event::Connected | Event::Draining | Event::Closed => {
            tracing::debug!(%event, "the connection to NATS has changed");
        }
        _ => {
            tracing::warn!(%event, "the connection to NATS is disturbed; the client reconnects by itself")
        }
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(version("2.9.10") < Some(OLDEST_SERVER));
        assert!(version("2.12.0") >= Some(OLDEST_SERVER));
        assert!(version("2.15.1") >= Some(OLDEST_SERVER));
        assert_eq!(version("dev"), None);
    }
}
