//! gRPC servers with deadlines, keep-alive and a bounded shutdown.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

use crate::{context, shutdown};

/// No call may take longer, whatever its caller allows.
pub(crate) const LONGEST_CALL: Duration = shutdown::STEP;
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

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
