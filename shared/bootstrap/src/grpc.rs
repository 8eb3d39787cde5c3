//! gRPC servers and channels with the settings that keep them honest: deadlines, keep-alive, bounded shutdown.

use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint, Server},
};

use crate::context;

/// How long calls in flight may go on after shutdown has begun; an idle client must not hold us up for longer.
const GRACE: Duration = Duration::from_secs(5);
/// No call may take longer, whatever its caller allows.
const LONGEST_CALL: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `routes` and the standard health service until `shutdown`.
///
/// # Errors
/// Those of the transport.
pub async fn serve(listener: TcpListener, routes: Routes, shutdown: CancellationToken) -> anyhow::Result<()> {
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

/// A channel to another service; connects when first used and again whenever it must.
///
/// # Errors
/// When `url` is no `http://host:port`.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .with_context(|| format!("{url:?} is no address of a service: expected http://host:port"))?
        .connect_timeout(Duration::from_secs(1))
        .timeout(LONGEST_CALL)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}
