//! HTTP servers with a bounded shutdown.

use anyhow::Context as _;
use axum::Router;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::shutdown;

/// Serves `router` until `stopping`; requests in flight then get [`shutdown::DRAIN`].
///
/// Boxed, so that the HTTP stack is compiled once, here, and not again in every service.
pub(crate) fn serve(
    listener: TcpListener,
    router: Router,
    stopping: CancellationToken,
) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(async move {
        let stop = stopping.clone().cancelled_owned();
        let server = axum::serve(listener, router).with_graceful_shutdown(stop);
        let grace = async {
            stopping.cancelled().await;
            tokio::time::sleep(shutdown::DRAIN).await;
        };
        tokio::select! {
            served = server.into_future() => served.context("serve HTTP"),
            () = grace => Ok(()),
        }
    })
}
