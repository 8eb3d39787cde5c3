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

/// A channel to another service. It connects at the first call and reconnects by itself. It spreads
/// calls over all replicas: those of a host name that resolves to several addresses, including replicas
/// that start later, and those of several addresses that commas separate.
///
/// # Errors
/// When `urls` are not `http://host:port`.
pub fn channel(urls: &str) -> anyhow::Result<Channel> {
    let wrong = || format!("{urls:?} is not the address of a service: expected http://host:port");
    let uris = urls.split(',').map(str::parse::<Uri>);
    let uris = uris.collect::<Result<Vec<_>, _>>().with_context(wrong)?;
    let host_and_port = |uri: &Uri| Some((uri.host()?.to_owned(), uri.port_u16().unwrap_or(80)));
    let names = uris.iter().map(host_and_port).collect::<Option<Vec<_>>>();
    let names = names.with_context(wrong)?;
    let origin = uris.into_iter().next().with_context(wrong)?;
    let (channel, changes) = Channel::balance_channel(MAX_REPLICAS);
    tokio::spawn(follow(names, origin, changes));
    Ok(channel)
}

/// Keeps the channel's replicas equal to the addresses of the host names, for as long as the channel
/// is used.
async fn follow(
    names: Vec<(String, u16)>,
    origin: Uri,
    changes: mpsc::Sender<Change<SocketAddr, Endpoint>>,
) {
    let mut known = HashSet::new();
    while !changes.is_closed() {
        let found = look_up(&names).await;
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

/// All addresses of the names; none when one of the names cannot be resolved.
async fn look_up(names: &[(String, u16)]) -> HashSet<SocketAddr> {
    let mut found = HashSet::new();
    for (host, port) in names {
        match lookup_host((host.as_str(), *port)).await {
            Ok(addresses) => found.extend(addresses.take(MAX_REPLICAS / 2)),
            Err(error) => {
                tracing::debug!(host, %error, "the name cannot be resolved; known replicas stay in use");
                return HashSet::new();
            }
        }
    }
    found
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
