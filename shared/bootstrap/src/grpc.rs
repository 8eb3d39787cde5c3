//! gRPC servers and channels with the settings that keep them honest: deadlines, keep-alive,
//! bounded shutdown.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use http::Uri;
use tokio::{
    net::{TcpListener, lookup_host},
    sync::mpsc,
};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint, Server, channel::Change},
};

use crate::context;

/// How long calls in flight may go on after shutdown has begun; an idle client must not hold us up
/// for longer.
const GRACE: Duration = Duration::from_secs(5);
/// No call may take longer, whatever its caller allows.
const LONGEST_CALL: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the replicas of a service are looked up.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const MOST_REPLICAS: usize = 128;

/// Serves `routes` and the standard health service until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let incoming = TcpListenerStream::new(listener).map(|accepted| {
        accepted.inspect(|stream| {
            // Only latency depends on it.
            let _ignored = stream.set_nodelay(true);
        })
    });
    let server = Server::builder()
        .trace_fn(context::call_span)
        .timeout(LONGEST_CALL)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_routes(routes)
        .add_service(health)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    let grace = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served.context("serve gRPC"),
        () = grace => Ok(()),
    }
}

/// A channel to another service; connects when first used and again whenever it must. Where the
/// host's name stands for several replicas, calls are spread over all of them, also over those that
/// come later.
///
/// # Errors
/// When `url` is no `http://host:port`.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    let wrong = || format!("{url:?} is no address of a service: expected http://host:port");
    let uri: Uri = url.parse().with_context(wrong)?;
    let (host, port) = (
        uri.host().with_context(wrong)?.to_owned(),
        uri.port_u16().unwrap_or(80),
    );
    let (channel, changes) = Channel::balance_channel(MOST_REPLICAS);
    tokio::spawn(follow(host, port, uri, changes));
    Ok(channel)
}

/// Keeps the channel's replicas those that the host's name stands for, as long as somebody uses the
/// channel.
async fn follow(
    host: String,
    port: u16,
    origin: Uri,
    changes: mpsc::Sender<Change<SocketAddr, Endpoint>>,
) {
    let mut known = HashSet::new();
    while !changes.is_closed() {
        let found: HashSet<SocketAddr> = match lookup_host((host.as_str(), port)).await {
            Ok(found) => found.take(MOST_REPLICAS / 2).collect(),
            Err(error) => {
                tracing::debug!(host, %error, "the name cannot be resolved now");
                HashSet::new()
            }
        };
        // Without an answer those of yesterday are the best guess, and fail faster than nobody.
        if !found.is_empty() {
            let gone = known
                .difference(&found)
                .map(|address| Change::Remove(*address));
            let new = found
                .difference(&known)
                .map(|address| Change::Insert(*address, endpoint(*address, &origin)));
            for change in new.chain(gone) {
                // Closed: nobody uses the channel any more.
                let _closed = changes.send(change).await;
            }
            known = found;
        }
        let pause = if known.is_empty() {
            Duration::from_millis(100)
        } else {
            LOOK_AGAIN
        };
        tokio::time::sleep(pause).await;
    }
}

fn endpoint(address: SocketAddr, origin: &Uri) -> Endpoint {
    let uri = Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query("/")
        .build();
    Endpoint::from(uri.unwrap_or_else(|_| origin.clone()))
        .origin(origin.clone())
        .connect_timeout(Duration::from_secs(1))
        .timeout(LONGEST_CALL)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}
