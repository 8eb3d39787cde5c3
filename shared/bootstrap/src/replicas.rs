//! Channels to the replicas of other services: they find them, and try another one when one is
//! gone.

use std::{
    collections::HashSet,
    error::Error as _,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use axum::body::to_bytes;
use contracts::Service;
use futures::future::{BoxFuture, FutureExt as _};
use h2::Reason;
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::{TcpStream, lookup_host},
    sync::watch,
};
use tonic::{
    ConnectError, Status,
    body::Body,
    transport::{self, Channel, Endpoint},
};
use tower::{ServiceExt as _, service_fn};

use crate::{
    Tls, context,
    grpc::{KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, LONGEST_CALL},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the replicas of a service are looked up.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
const MAX_REPLICAS: usize = 64;
/// How long a replica that could not be reached is tried last. One attempt to connect takes this
/// long.
const TRIED_LAST_FOR: Duration = CONNECT_TIMEOUT;

/// The replicas of a service; cheap to clone.
///
/// Calls go to them in turn. A replica that stops is still known for seconds: name servers and
/// their caches are late. A call that cannot be sent to it is sent to the next. A call that was
/// sent is not repeated here, because the replica may have carried it out. A call ends with its
/// deadline, whatever is tried.
#[derive(Clone, Debug)]
pub struct Replicas {
    known: watch::Receiver<Arc<Vec<Replica>>>,
    turn: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct Replica {
    address: SocketAddr,
    channel: Channel,
    unreachable: Unreachable,
}

/// Since when a replica cannot be reached: a connection is being made, or a call found none.
#[derive(Clone, Debug, Default)]
struct Unreachable(Arc<Mutex<Option<Instant>>>);

impl Unreachable {
    fn note(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    fn clear(&self) {
        *self.0.lock() = None;
    }

    fn is_recent(&self) -> bool {
        self.0
            .lock()
            .is_some_and(|since| since.elapsed() < TRIED_LAST_FOR)
    }
}

impl Replicas {
    /// Connects at the first call and reconnects by itself. The replicas are those of a host name
    /// that resolves to several addresses, including replicas that start later, and those of
    /// several addresses that commas separate.
    ///
    /// With `tls` they must have the certificate of `service`.
    ///
    /// # Errors
    /// When `urls` are not `https://host:port` with `tls`, and `http://host:port` without.
    pub fn new(urls: &str, service: Service, tls: Option<&Tls>) -> anyhow::Result<Self> {
        let wrong = || {
            format!(
                "{urls:?} is not the address of a service: expected http://host:port or \
                 https://host:port"
            )
        };
        let uris = urls.split(',').map(str::parse::<Uri>);
        let uris = uris.collect::<Result<Vec<_>, _>>().with_context(wrong)?;
        let is_https = |uri: &Uri| uri.scheme_str() == Some("https");
        let host_and_port = |uri: &Uri| {
            let port = if is_https(uri) { 443 } else { 80 };
            Some((uri.host()?.to_owned(), uri.port_u16().unwrap_or(port)))
        };
        ensure!(
            uris.iter().all(|uri| is_https(uri) == tls.is_some()),
            "{urls:?}: expected https with the certificate of TLS_DIR, and http without one"
        );
        let names = uris.iter().map(host_and_port).collect::<Option<Vec<_>>>();
        let names = names.with_context(wrong)?;
        let origin = uris.into_iter().next().with_context(wrong)?;
        let tls = tls.cloned();
        let (found, known) = watch::channel(Arc::default());
        let server = Server {
            service,
            origin,
            tls,
        };
        tokio::spawn(follow(names, server, found));
        Ok(Self {
            known,
            turn: Arc::default(),
        })
    }
}

impl tower::Service<Request<Body>> for Replicas {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // A call waits for the replica that it is sent to.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut known = self.known.clone();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let budget = context::budget(request.headers()).unwrap_or(LONGEST_CALL);
        let attempts = async move {
            let (head, body) = request.into_parts();
            let body = to_bytes(axum::body::Body::new(body), usize::MAX).await;
            let body = body.map_err(|error| Status::internal(error.to_string()))?;
            let mut failure = Status::unavailable("no address of the service is known");
            let replicas = known.wait_for(|replicas| !replicas.is_empty());
            let replicas = match tokio::time::timeout(CONNECT_TIMEOUT, replicas).await {
                Ok(Ok(replicas)) => Arc::clone(&replicas),
                _ => return Err(failure),
            };
            let in_turn = in_turn(&replicas, turn);
            // Twice: one that is there may have closed its connection.
            for replica in in_turn.iter().chain(&in_turn) {
                let body = Body::new(axum::body::Body::from(body.clone()));
                let request = Request::from_parts(head.clone(), body);
                match replica.channel.clone().oneshot(request).await {
                    Err(error) if is_unsent(&error) => {
                        replica.unreachable.note();
                        failure = Status::from_error(error.into());
                    }
                    result => return result.map_err(|error| Status::from_error(error.into())),
                }
            }
            Err(failure)
        };
        // The client library's limit begins when there is a connection.
        let in_time = tokio::time::timeout(budget, attempts);
        let late = |_| Err(Status::deadline_exceeded("no replica has answered in time"));
        in_time.map(move |done| done.unwrap_or_else(late)).boxed()
    }
}

/// All replicas, beginning with the one whose turn it is. Those that had no connection a moment ago
/// come last: a call may wait there for the whole [`CONNECT_TIMEOUT`], and calls behind it wait one
/// after the other.
fn in_turn(replicas: &[Replica], turn: usize) -> Vec<&Replica> {
    let first = turn.checked_rem(replicas.len()).unwrap_or_default();
    let (before, after) = replicas.split_at(first);
    let mut in_turn: Vec<_> = after.iter().chain(before).collect();
    in_turn.sort_by_key(|replica| replica.unreachable.is_recent());
    in_turn
}

/// Whether no replica has begun to carry the call out: there was no connection, it was closed
/// before the call was written, or its replica refused the call while it was stopping (RFC 9113,
/// sections 6.8 and 8.7).
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

/// Keeps the replicas equal to the addresses of the host names, for as long as anybody uses them.
async fn follow(
    names: Vec<(String, u16)>,
    server: Server,
    known: watch::Sender<Arc<Vec<Replica>>>,
) {
    while !known.is_closed() {
        let found = look_up(&names).await;
        // If DNS returns nothing, keep the last known addresses: a refused connection fails faster
        // than a call that waits for an address.
        if !found.is_empty() {
            let replicas = Arc::clone(&known.borrow());
            let mut replicas = replicas.to_vec();
            replicas.retain(|replica| found.contains(&replica.address));
            for address in found {
                if replicas.iter().all(|replica| replica.address != address) {
                    let unreachable = Unreachable::default();
                    replicas.push(Replica {
                        address,
                        channel: server.at(address, unreachable.clone()),
                        unreachable,
                    });
                }
            }
            known.send_replace(Arc::new(replicas));
        }
        let pause = match known.borrow().is_empty() {
            true => Duration::from_millis(100),
            false => LOOKUP_INTERVAL,
        };
        tokio::time::sleep(pause).await;
    }
}

/// All addresses of the names; none when one of the names cannot be resolved.
async fn look_up(names: &[(String, u16)]) -> HashSet<SocketAddr> {
    let mut found = HashSet::new();
    for (host, port) in names {
        match lookup_host((host.as_str(), *port)).await {
            Ok(addresses) => found.extend(addresses.take(MAX_REPLICAS)),
            Err(error) => {
                tracing::debug!(host, %error, "the name cannot be resolved; known replicas stay in use");
                return HashSet::new();
            }
        }
    }
    found
}

/// What the replicas of a service have in common.
struct Server {
    service: Service,
    origin: Uri,
    tls: Option<Tls>,
}

impl Server {
    fn at(&self, address: SocketAddr, unreachable: Unreachable) -> Channel {
        let uri = Uri::builder()
            .scheme("http")
            .authority(address.to_string())
            .path_and_query("/")
            .build();
        let endpoint = Endpoint::from(uri.unwrap_or_else(|_| self.origin.clone()))
            .origin(self.origin.clone())
            .timeout(LONGEST_CALL)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        // Not the time limit and the TLS of the client library: the former does not tell that
        // nothing was sent, and the latter reads a certificate once.
        match self.tls.clone() {
            None => endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
                let connecting = async move { connect(address).await.map(TokioIo::new) };
                in_time(unreachable.clone(), connecting)
            })),
            Some(tls) => {
                let name = self.service.name();
                endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
                    let tls = tls.clone();
                    let connecting = async move {
                        let stream = connect(address).await?;
                        tls.connect(name, stream).await.map(TokioIo::new)
                    };
                    in_time(unreachable.clone(), connecting)
                }))
            }
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn in_time<T>(
    unreachable: Unreachable,
    connecting: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    unreachable.note();
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    unreachable.clear();
    Ok(connected)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::future::{join_all, try_join_all};
    use tokio::{
        net::{TcpListener, TcpSocket},
        task::JoinHandle,
    };
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
        let mut client = HealthClient::new(Replicas::new(urls, Service::Order, None).unwrap());
        let request = HealthCheckRequest::default();
        client.check(request).await.map(drop)
    }

    #[tokio::test]
    async fn a_call_that_finds_its_replica_gone_goes_to_another_one() {
        let (listener, url) = listen().await;
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        tokio::spawn(crate::grpc::serve(listener, Routes::default(), None, stop));
        let urls = format!("{},{url},{}", gone().await, gone().await);
        for _ in 0..100 {
            call(&urls).await.unwrap();
        }
    }

    /// A replica that is lost with its machine: nobody answers its address. The connections fill
    /// the queue of a listener that accepts none.
    async fn lost() -> (String, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        let timeout = Duration::from_millis(300);
        while let Ok(connected) = tokio::time::timeout(timeout, connect(address)).await {
            queue.push(connected.unwrap());
        }
        (format!("http://{address}"), listener, queue)
    }

    #[tokio::test]
    async fn a_call_ends_with_its_deadline_although_no_replica_can_be_reached() {
        let (url, _listener, _queue) = lost().await;
        let client = HealthClient::new(Replicas::new(&url, Service::Order, None).unwrap());
        let began = Instant::now();
        let calls = (0..300).map(|_| {
            let mut client = client.clone();
            async move {
                let mut request = tonic::Request::new(HealthCheckRequest::default());
                request.set_timeout(Duration::from_secs(1));
                client.check(request).await
            }
        });
        for failed in join_all(calls).await {
            let code = failed.unwrap_err().code();
            assert!(
                matches!(code, Code::DeadlineExceeded | Code::Unavailable),
                "{code}"
            );
        }
        // One after the other they would wait for 300 connections.
        assert!(
            began.elapsed() < Duration::from_secs(150),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn calls_do_not_queue_at_a_replica_that_cannot_be_reached() {
        // The others have the time of one attempt to connect; a machine may pause for longer.
        for _ in 0..10 {
            if calls_pass_one_that_waits().await {
                return;
            }
        }
        panic!("they have waited, too");
    }

    async fn calls_pass_one_that_waits() -> bool {
        let (lost_url, _listener, _queue) = lost().await;
        let (listener, url) = listen().await;
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        tokio::spawn(crate::grpc::serve(listener, Routes::default(), None, stop));
        let urls = format!("{lost_url},{url}");
        let replicas = Replicas::new(&urls, Service::Order, None).unwrap();
        let mut known = replicas.known.clone();
        let known = known
            .wait_for(|known| known.len() == 2)
            .await
            .unwrap()
            .clone();
        let is_lost = |replica: &&Replica| lost_url.ends_with(&replica.address.to_string());
        let lost = known.iter().find(is_lost).unwrap();
        let client = HealthClient::new(replicas);
        let call = || {
            let mut client = client.clone();
            async move { client.check(HealthCheckRequest::default()).await.map(drop) }
        };
        // One waits for the connection to the lost replica, the other one makes that to the other.
        let first = [tokio::spawn(call()), tokio::spawn(call())];
        while !lost.unreachable.is_recent() || !first.iter().any(JoinHandle::is_finished) {
            if first.iter().all(JoinHandle::is_finished) {
                return false;
            }
            tokio::task::yield_now().await;
        }
        try_join_all((0..10).map(|_| call())).await.unwrap();
        let have_passed = !first.iter().all(JoinHandle::is_finished);
        for called in first {
            called.await.unwrap().unwrap();
        }
        have_passed
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
