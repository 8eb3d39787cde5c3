//! The connection to NATS. Reconnects by itself for ever; everything above must expect that it is
//! away.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, jetstream};

/// The oldest server that keeps consumers honest after a power loss (nats-server #5412 and others
/// are fixed there).
const OLDEST_SERVER: (u32, u32) = (2, 12);
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection and its JetStream context; cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address is wrong or the server refused us.
    #[error("cannot connect to NATS at {url}: is it running there?")]
    Connect {
        /// Where we looked.
        url: String,
        /// What the client library says.
        source: async_nats::ConnectError,
    },
    /// The server lacks what we rely on.
    #[error(
        "nats-server at {url} is version {found}, but at least 2.12 is needed: older ones can skip events after a power loss"
    )]
    TooOld {
        /// Where we looked.
        url: String,
        /// What runs there.
        found: String,
    },
}

impl Broker {
    /// Connects as `name` and checks the server's version. Waits for a server that is not up yet.
    pub async fn connect(url: &str, name: &str) -> Result<Self, BrokerError> {
        let client = connect_when_up(url, name).await?;
        let found = client.server_info().version;
        if version(&found).is_none_or(|version| version < OLDEST_SERVER) {
            return Err(BrokerError::TooOld {
                url: url.to_owned(),
                found,
            });
        }
        let jetstream = jetstream::context::ContextBuilder::new()
            .ack_timeout(ACK_TIMEOUT)
            .build(client.clone());
        Ok(Self { client, jetstream })
    }

    /// Whether the connection stands now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// The plain client, for live feeds that may miss messages.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// Tries until the server answers: at start, services and servers come up in any order.
async fn connect_when_up(url: &str, name: &str) -> Result<Client, BrokerError> {
    let mut wait = Duration::from_millis(50);
    for attempt in 1_u32.. {
        let options = ConnectOptions::new()
            .name(name)
            .ping_interval(Duration::from_secs(5))
            .reconnect_delay_callback(|attempts| Duration::from_millis(50 << attempts.min(5)))
            .event_callback(|event| async move { report(&event) });
        match options.connect(url).await {
            Ok(client) => return Ok(client),
            Err(source) if !may_come_up(&source) => {
                return Err(BrokerError::Connect {
                    url: url.to_owned(),
                    source,
                });
            }
            Err(error) => tracing::info!(broker.url = url, attempt, %error, "waiting for NATS"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(2));
    }
    unreachable!("the loop above ends only by returning")
}

fn may_come_up(error: &async_nats::ConnectError) -> bool {
    use async_nats::ConnectErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::Io | Kind::TimedOut | Kind::Dns | Kind::MaxReconnects
    )
}

fn report(event: &Event) {
    match event {
        Event::Connected | Event::Draining | Event::Closed => {
            tracing::debug!(%event, "NATS connection")
        }
        _ => tracing::warn!(%event, "NATS connection"),
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
