//! HTTP servers with a bounded shutdown, and with time limits for slow clients.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Version, header::CONNECTION},
    middleware::Next,
    response::Response,
};
use axum_server::{Handle, accept::NoDelayAcceptor};
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::shutdown;

/// How long a new connection may wait with its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a client may take for the headers of each further request. The time between two
/// requests counts: load balancers keep connections for up to ten minutes, and must close them
/// first.
const HEADERS: Duration = Duration::from_secs(650);
/// Most bytes of the headers of a request.
const MAX_HEADERS: u32 = 16 * 1024;
/// Where HTTP/1 stops reading; the first line and the headers must fit in.
const MAX_BUFFER: usize = 64 * 1024;

/// Serves `router` until `stopping`; requests in flight then get [`shutdown::DRAIN`]. Requests
/// carry the address of their client: `ConnectInfo<SocketAddr>`.
///
/// Boxed, so that the HTTP stack is compiled once, here, and not again in every service.
pub(crate) fn serve(
    listener: TcpListener,
    router: Router,
    stopping: CancellationToken,
) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(async move {
        let handle = Handle::new();
        let mut server = axum_server::from_tcp(listener.into_std()?)?
            .handle(handle.clone())
            .acceptor(NoDelayAcceptor::new())
            .first_request_timeout(FIRST_REQUEST)
            .accept_error_handler(|client, error| {
                tracing::warn!(?client, %error, "cannot accept a connection; trying again");
            });
        let protocol = server.http_builder();
        let mut http1 = protocol.http1();
        http1.header_read_timeout(HEADERS).max_buf_size(MAX_BUFFER);
        let mut http2 = protocol.http2();
        http2.max_header_list_size(MAX_HEADERS);
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let mut served = std::pin::pin!(server.serve(service));
        tokio::select! {
            served = &mut served => return served.context("serve HTTP"),
            () = stopping.cancelled() => {}
        }
        handle.graceful_shutdown(Some(shutdown::DRAIN));
        served.await.context("serve HTTP")
    })
}

/// Asks clients for a new connection after each response while `draining`: a request that is on its
/// way when the process closes an idle connection fails. HTTP/2 announces the end by itself.
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::Instant,
    };
    use tokio_util::sync::DropGuard;

    use super::*;

    async fn server() -> (SocketAddr, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = CancellationToken::new();
        let router = Router::new().route("/", get(async || "here"));
        tokio::spawn(serve(listener, router, stopping.clone()));
        (address, stopping.drop_guard())
    }

    #[tokio::test]
    async fn a_client_that_sends_its_headers_slowly_is_cut_off() {
        let (address, _stop) = server().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
            .await
            .unwrap();
        let began = Instant::now();
        let mut one = [0];
        loop {
            // It sends something all the time.
            let sent = client.write_all(b"y").await;
            let read =
                tokio::time::timeout(Duration::from_millis(100), client.read(&mut one)).await;
            if sent.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
                break;
            }
            assert!(
                began.elapsed() < 10 * FIRST_REQUEST,
                "the connection stays open"
            );
        }
        assert!(began.elapsed() >= FIRST_REQUEST - Duration::from_secs(1));
    }

    #[tokio::test]
    async fn requests_with_too_many_headers_or_ambiguous_lengths_are_refused() {
        let (address, _stop) = server().await;
        for (what, head, status) in [
            ("a request", "host: x\r\n".to_owned(), 200),
            (
                "a long header",
                format!("x: {}\r\n", "y".repeat(MAX_BUFFER)),
                431,
            ),
            (
                "two lengths",
                "content-length: 1\r\ncontent-length: 2\r\n".to_owned(),
                400,
            ),
            (
                "a length that is no number",
                "content-length: +1\r\n".to_owned(),
                400,
            ),
            (
                "chunked twice",
                "transfer-encoding: chunked, identity\r\n".to_owned(),
                400,
            ),
            ("a folded header", "x: y\r\n z: chunked\r\n".to_owned(), 400),
            (
                "a space before the colon",
                "content-length : 1\r\n".to_owned(),
                400,
            ),
        ] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let request = format!("GET / HTTP/1.1\r\n{head}connection: close\r\n\r\n");
            let _refused = client.write_all(request.as_bytes()).await;
            let mut response = String::new();
            let _reset = client.read_to_string(&mut response).await;
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status}")),
                "{what}: {response}"
            );
        }
    }

    /// CVE-2023-44487.
    #[tokio::test]
    async fn a_client_that_resets_its_requests_all_the_time_is_cut_off() {
        let (address, _stop) = server().await;
        let client = TcpStream::connect(address).await.unwrap();
        let (client, connection) = h2::client::handshake(client).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut resets = 0;
        while let Ok(mut client) = client.clone().ready().await {
            let request = axum::http::Request::get("http://x/").body(()).unwrap();
            let Ok((_response, mut stream)) = client.send_request(request, false) else {
                break;
            };
            // The request has left before it is reset.
            tokio::task::yield_now().await;
            stream.send_reset(h2::Reason::CANCEL);
            resets += 1;
            assert!(resets < 100_000, "the connection stays open");
        }
        let error = connection.await.unwrap().unwrap_err();
        assert_eq!(
            error.reason(),
            Some(h2::Reason::ENHANCE_YOUR_CALM),
            "{error}"
        );
    }
}
