//! gRPC servers with deadlines, keep-alive and a bounded shutdown, which know their callers where
//! there is TLS.

use std::time::Duration;

use anyhow::Context as _;
use axum::{
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use contracts::rpc;
use futures::{StreamExt as _, future::BoxFuture};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    service::Routes,
    transport::server::{Router, Server, TcpConnectInfo, TlsConnectInfo},
};

use crate::{Tls, context, shutdown, tls};

/// No call may take longer, whatever its caller allows.
pub(crate) const LONGEST_CALL: Duration = shutdown::STEP;
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that show their certificates at the same time.
const HANDSHAKES: usize = 256;

/// Serves `routes` and the standard health service until `stopping`; calls in flight then get
/// [`shutdown::DRAIN`]. With `tls` every caller needs a certificate, and `routes` serve
/// only those that [`rpc::RPCS`] names.
///
/// Boxed, so that the HTTP/2 stack is compiled once, here, and not again in every service.
pub fn serve(
    listener: TcpListener,
    routes: Routes,
    tls: Option<Tls>,
    stopping: CancellationToken,
) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(async move {
        let incoming = TcpListenerStream::new(listener).map(|accepted| {
            accepted.inspect(|stream| {
                // Only latency depends on it.
                let _ignored = stream.set_nodelay(true);
            })
        });
        let stopped = stopping.clone().cancelled_owned();
        let serve = async {
            match tls {
                None => {
                    let server = server(routes);
                    server.serve_with_incoming_shutdown(incoming, stopped).await
                }
                Some(tls) => {
                    let incoming = incoming
                        .map(|accepted| accept(&tls, accepted))
                        .buffer_unordered(HANDSHAKES);
                    let routes = routes.into_axum_router();
                    let routes = Routes::from(routes.layer(middleware::from_fn(authorize)));
                    let server = server(routes);
                    server.serve_with_incoming_shutdown(incoming, stopped).await
                }
            }
        };
        let grace = async {
            stopping.cancelled().await;
            tokio::time::sleep(shutdown::DRAIN).await;
        };
        tokio::select! {
            served = serve => served.context("serve gRPC"),
            () = grace => Ok(()),
        }
    })
}

fn server(routes: Routes) -> Router {
    let (_reporter, health) = tonic_health::server::health_reporter();
    Server::builder()
        .trace_fn(context::call_span)
        .timeout(LONGEST_CALL)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_routes(routes)
        .add_service(health)
}

async fn accept(
    tls: &Tls,
    accepted: std::io::Result<TcpStream>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = accepted?;
    let peer = stream.peer_addr()?;
    tls.accept(stream).await.inspect_err(|error| {
        tracing::debug!(%peer, %error, "a connection without a valid certificate is closed");
    })
}

/// Refuses a caller whose certificate is none of those that may call.
async fn authorize(request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let certificates = connection.and_then(TlsConnectInfo::peer_certs);
    let certificate = certificates.as_deref().and_then(|chain| chain.first());
    let path = request.uri().path();
    let may_call = certificate.is_some_and(|certificate| {
        let mut callers = rpc::callers(path).iter();
        callers.any(|caller| tls::belongs_to(certificate, caller.name()))
    });
    if may_call {
        return next.run(request).await;
    }
    let peer = connection.and_then(|connection| connection.get_ref().remote_addr());
    tracing::warn!(
        rpc = path,
        ?peer,
        "a call was refused: the certificate of its caller does not allow this RPC"
    );
    Status::permission_denied("the certificate of the caller does not allow this call").into_http()
}
