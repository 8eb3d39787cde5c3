//! gRPC servers and channels with deadlines, keep-alive and a bounded shutdown.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use futures::future::BoxFuture;
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

use crate::{context, shutdown};

/// No call may take longer, whatever its caller allows.
const LONGEST_CALL: Duration = shutdown::STEP;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a channel looks up the replicas of a service.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
const MAX_REPLICAS: usize = 128;

/// Serves `routes` and the standard health service until `stopping`; calls in flight then get
/// [`shutdown::DRAIN`].
///
/// Boxed, so that the HTTP/2 stack is compiled once, here, and not again in every service.
pub fn serve(
    listener: TcpListener,
    routes: Routes,
    stopping: CancellationToken,
) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(async move {
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
            .serve_with_incoming_shutdown(incoming, stopping.clone().cancelled_owned());
        let grace = async {
            stopping.cancelled().await;
            tokio::time::sleep(shutdown::DRAIN).await;
        };
        tokio::select! {
            served = server => served.context("serve gRPC"),
            () = grace => Ok(()),
        }
    })
}

/// A channel to another service. It connects at the first call and reconnects by itself. A host name
/// that resolves to several replicas spreads calls over all of them, including replicas that start
/// later.
///
/// # Errors
/// When `url` is not `http://host:port`.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    let wrong = || format!("{url:?} is not the address of a service: expected http://host:port");
    let uri: Uri = url.parse().with_context(wrong)?;
    let (host, port) = (
        uri.host().with_context(wrong)?.to_owned(),
        uri.port_u16().unwrap_or(80),
    );
    let (channel, changes) = Channel::balance_channel(MAX_REPLICAS);
    tokio::spawn(follow(host, port, uri, changes));
    Ok(channel)
}

/// Keeps the channel's replicas equal to the addresses of the host name, for as long as the channel is
/// used.
async fn follow(
    host: String,
    port: u16,
    origin: Uri,
    changes: mpsc::Sender<Change<SocketAddr, Endpoint>>,
) {
    let mut known = HashSet::new();
    while !changes.is_closed() {
        let found: HashSet<SocketAddr> = match lookup_host((host.as_str(), port)).await {
            Ok(found) => found.take(MAX_REPLICAS / 2).collect(),
            Err(error) => {
                tracing::debug!(host, %error, "the name cannot be resolved; known replicas stay in use");
                HashSet::new()
            }
        };
        // If DNS returns nothing, keep the last known addresses: a refused connection fails faster
        // than a call that waits for an endpoint.
        if !found.is_empty() {
            let gone = known
                .difference(&found)
                .map(|address| Change::Remove(*address));
            let new = found
                .difference(&known)
                .map(|address| Change::Insert(*address, endpoint(*address, &origin)));
            for change in new.chain(gone) {
                // Closed: the channel has been dropped.
                let _closed = changes.send(change).await;
            }
            known = found;
        }
        let pause = if known.is_empty() {
            Duration::from_millis(100)
        } else {
            LOOKUP_INTERVAL
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
