//! HTTP servers with a bounded shutdown.

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Version, header::CONNECTION},
    middleware::Next,
    response::Response,
};
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

/// Asks clients for a new connection after each response while `draining`: a request that is on its way
/// when the process closes an idle connection fails. HTTP/2 announces the end by itself.
pub(crate) async fn close_while_draining(
    State(draining): State<CancellationToken>,
    request: Request,
    next: Next,
) -> Response {
    let may_close = request.version() < Version::HTTP_2;
    let mut response = next.run(request).await;
    if may_close && draining.is_cancelled() {
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
