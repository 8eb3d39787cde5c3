//! Channels to the replicas of other services: they find them, and try another one when one is gone.

use std::{
    collections::HashSet,
    error::Error as _,
    net::SocketAddr,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::body::to_bytes;
use backon::{ExponentialBuilder, Retryable as _};
use futures::future::{BoxFuture, FutureExt as _};
use h2::Reason;
use http::{Request, Response, Uri};
use tokio::{net::lookup_host, sync::mpsc};
use tonic::{
    ConnectError, Status,
    body::Body,
    transport::{self, Channel, Endpoint, channel::Change},
};
use tower::{Service, ServiceExt as _};

use crate::grpc::{KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, LONGEST_CALL};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a call looks for a replica that it can be sent to. Each attempt has the time of the whole
/// call, which may take longer by this time.
const ANOTHER_REPLICA: Duration = Duration::from_millis(250);
/// How often a channel looks up the replicas of a service.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
const MAX_REPLICAS: usize = 128;

/// A channel to the replicas of a service; cheap to clone.
///
/// A replica that stops is still known for seconds: name servers and their caches are late. A call that
/// cannot be sent to it is sent to another one. A call that was sent is not repeated here, because the
/// replica may have carried it out.
#[derive(Clone, Debug)]
pub struct Replicas(Channel);

impl Replicas {
    /// Connects at the first call and reconnects by itself. Calls are spread over all replicas: those of
    /// a host name that resolves to several addresses, including replicas that start later, and those of
    /// several addresses that commas separate.
    ///
    /// # Errors
    /// When `urls` are not `http://host:port`.
    pub fn new(urls: &str) -> anyhow::Result<Self> {
        let wrong =
            || format!("{urls:?} is not the address of a service: expected http://host:port");
        let uris = urls.split(',').map(str::parse::<Uri>);
        let uris = uris.collect::<Result<Vec<_>, _>>().with_context(wrong)?;
        let host_and_port =
            |uri: &Uri| Some((uri.host()?.to_owned(), uri.port_u16().unwrap_or(80)));
        let names = uris.iter().map(host_and_port).collect::<Option<Vec<_>>>();
        let names = names.with_context(wrong)?;
        let origin = uris.into_iter().next().with_context(wrong)?;
        let (channel, changes) = Channel::balance_channel(MAX_REPLICAS);
        tokio::spawn(follow(names, origin, changes));
        Ok(Self(channel))
    }
}

impl Service<Request<Body>> for Replicas {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // Each attempt waits for its replica.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.0.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = to_bytes(axum::body::Body::new(body), usize::MAX).await;
            let body = body.map_err(|error| Status::internal(error.to_string()))?;
            let began = Instant::now();
            let attempt = || {
                let body = Body::new(axum::body::Body::from(body.clone()));
                channel
                    .clone()
                    .oneshot(Request::from_parts(head.clone(), body))
            };
            let sent = attempt
                .retry(another_replica())
                .when(|error| is_unsent(error) && began.elapsed() < ANOTHER_REPLICA);
            sent.await.map_err(|error| Status::from_error(error.into()))
        }
        .boxed()
    }
}

/// The channel sets a replica aside that it cannot connect to, and tries it again: the first attempts
/// find another one, if there is one.
fn another_replica() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(1))
        .with_max_times(8)
}

/// Whether no replica has begun to carry the call out: there was no connection, it was closed before
/// the call was written, or its replica refused the call while it was stopping (RFC 9113, sections
/// 6.8 and 8.7).
fn is_unsent(error: &transport::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |error| (*error).source());
    causes.any(|cause| {
        let is_closed = cause.downcast_ref().is_some_and(hyper::Error::is_canceled);
        let is_refused = cause.downcast_ref().is_some_and(|error: &h2::Error| {
            error.is_remote()
                && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
        });
        cause.is::<ConnectError>() || is_closed || is_refused
    })
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
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(LONGEST_CALL)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tonic::{Code, service::Routes};
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    /// The address of a replica that has stopped.
    async fn gone() -> String {
        listen().await.1
    }

    async fn call(urls: &str) -> Result<(), Status> {
        let mut client = HealthClient::new(Replicas::new(urls).unwrap());
        let request = HealthCheckRequest::default();
        client.check(request).await.map(drop)
    }

    #[tokio::test]
    async fn a_call_that_finds_its_replica_gone_goes_to_another_one() {
        let (listener, url) = listen().await;
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        tokio::spawn(crate::grpc::serve(listener, Routes::default(), stop));
        let urls = format!("{},{url},{}", gone().await, gone().await);
        for _ in 0..100 {
            call(&urls).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_service_that_is_away_is_unavailable() {
        let failed = call(&gone().await).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_call_that_was_sent_is_not_sent_again() {
        let (listener, url) = listen().await;
        let received = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&received);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let request = connection.accept().await;
                count.fetch_add(usize::from(request.is_some()), Ordering::Relaxed);
                // The replica is killed.
            }
        });
        call(&url).await.unwrap_err();
        assert_eq!(received.load(Ordering::Relaxed), 1);
    }
}
