//! The outermost layer: whose request it is, how many requests there may be, its context, its span,
//! its metrics, its body, and the headers of every response.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use bootstrap::{
    RequestContext,
    context::{CORRELATION_ID, TRACEPARENT},
};
use http_body_util::LengthLimitError;
use opentelemetry::{KeyValue, global, metrics::Histogram};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Instrument as _;

use crate::{
    backends::REQUEST_BUDGET,
    extract::Caller,
    identity::{Identity, IdentitySettings, Refused, development},
    limits::{Allowance, LimitSettings, Limits},
    per_customer::{Counted, PerCustomer},
    problem::Problem,
};

/// Seconds; 5 is the request budget.
const BUCKETS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// Most bytes of a body. An order with a hundred lines needs a tenth of it.
const MAX_BODY: usize = 64 * 1024;
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Most requests at a time, from the end of their body on; live streams count until their response
/// begins. More would each wait for so long that its client gives up: a refusal costs nothing.
pub const MAX_REQUESTS: usize = 256;
/// Most of them of one customer: while a service is slow, there is room for others.
pub const MAX_CUSTOMER_REQUESTS: usize = MAX_REQUESTS / 2;

/// Browsers show no response of the API as a page, run nothing in it, and guess no other type.
const API_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";
/// The documentation page sets styles on its elements, and has icons in its style sheet.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// What all requests share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Edge {
    pub identity: Identity,
    pub limits: Limits,
    durations: Histogram<f64>,
    room: Arc<Semaphore>,
    in_progress: PerCustomer,
}

impl Edge {
    /// # Errors
    /// See [`Identity::new`].
    pub fn new(identity: &IdentitySettings, limits: LimitSettings) -> anyhow::Result<Self> {
        Ok(Self {
            identity: Identity::new(identity)?,
            limits: Limits::new(limits),
            durations: durations(),
            room: Arc::new(Semaphore::new(MAX_REQUESTS)),
            in_progress: PerCustomer::default(),
        })
    }

    /// Whose request it is, and what the caller may still send. A request is refused before its
    /// body is read.
    async fn admit(&self, head: &Parts) -> Result<(Caller, Option<Allowance>), Refused> {
        if self.room.available_permits() == 0 {
            return Err(Problem::overloaded().into());
        }
        let peer = head.extensions.get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map(|ConnectInfo(peer)| *peer);
        let address = self.limits.client(peer, &head.headers);
        // The credentials of a client that asks for a token are for the issuer.
        let caller = match head.uri.path() == development::PATH {
            true => Ok(None),
            false => {
                let verify = || self.limits.new_token(address);
                self.identity.authenticate(&head.headers, verify).await
            }
        };
        if let Ok(Some(principal)) = caller {
            let allowance = match &principal.key {
                Some(key) => self.limits.key(key.id)?,
                None => self.limits.customer(principal.customer)?,
            };
            return Ok((Caller(Some(principal)), allowance));
        }
        let allowance = self.limits.address(address)?;
        caller.map(|caller| (Caller(caller), allowance))
    }

    async fn admit_and_receive(
        &self,
        head: &Parts,
        body: Body,
    ) -> Result<(Caller, Option<Allowance>, Body), Refused> {
        let (caller, allowance) = self.admit(head).await?;
        Ok((caller, allowance, receive(body).await?))
    }

    /// Room for a request, until it is dropped.
    fn enter(&self, caller: &Caller) -> Result<(SemaphorePermit<'_>, Option<Counted>), Problem> {
        let room = self.room.try_acquire();
        let room = room.map_err(|_full| Problem::overloaded())?;
        let customer = caller.0.as_ref().map(|principal| principal.customer);
        let counted = customer.map(|customer| {
            let counted = self.in_progress.count(customer, MAX_CUSTOMER_REQUESTS);
            counted.ok_or_else(|| Problem::too_many_in_progress(MAX_CUSTOMER_REQUESTS))
        });
        Ok((room, counted.transpose()?))
    }

    fn record(&self, began: Instant, method: &'static str, route: String, status: StatusCode) {
        self.durations.record(
            began.elapsed().as_secs_f64(),
            &[
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", route),
                KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
            ],
        );
    }
}

/// Request durations, named as OpenTelemetry's semantic conventions for HTTP metrics ask.
fn durations() -> Histogram<f64> {
    let meter = global::meter("gateway");
    meter
        .f64_histogram("http.server.request.duration")
        .with_unit("s")
        .with_boundaries(BUCKETS.to_vec())
        .build()
}

/// Serves a request that is admitted, with its [`Caller`] and its [`RequestContext`], and completes
/// every response.
pub async fn serve(State(edge): State<Edge>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (mut head, body) = request.into_parts();
    // Before the budget of the request begins.
    let admitted = edge.admit_and_receive(&head, body).await;
    let method = known_method(&head.method);
    // The route and not the path: metrics need a bounded number of names.
    let route = head
        .extensions
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let policy = match head.uri.path().starts_with("/docs") {
        true => PAGE_POLICY,
        false => API_POLICY,
    };
    let headers = &head.headers;
    let mut context = RequestContext::for_edge(
        text(headers, CORRELATION_ID),
        text(headers, TRACEPARENT),
        REQUEST_BUDGET,
    );
    let span = tracing::info_span!(
        "http",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        correlation.id = %context.correlation_id,
        trace.id = context.final_trace_id(),
    );
    context.continue_in(&span);
    let correlation = context.correlation_id.to_string();
    head.extensions.insert(context);
    let entered = admitted.and_then(|admitted| Ok((edge.enter(&admitted.0)?, admitted)));
    let mut response = match entered {
        Ok((_room, (caller, allowance, body))) => {
            head.extensions.insert(caller);
            let request = Request::from_parts(head, body);
            let mut response = next.run(request).instrument(span.clone()).await;
            if let Some(allowance) = allowance {
                allowance.describe(response.headers_mut());
            }
            response
        }
        Err(Refused { reason, problem }) => {
            if let Some(reason) = reason {
                tracing::info!(parent: &span, method, route, reason,
                    "an access token was refused; the client gets 401 or 403");
            }
            problem.into_response()
        }
    };
    let status = response.status();
    if status.is_server_error() {
        tracing::warn!(parent: &span, method, route, %status,
            "a request failed; the client gets {status}");
    }
    edge.record(began, method, route, status);
    complete(response.headers_mut(), correlation, policy);
    response
}

/// The headers that every response has.
fn complete(headers: &mut HeaderMap, correlation: String, policy: &'static str) {
    if let Ok(correlation) = HeaderValue::try_from(correlation) {
        headers.insert(CORRELATION_ID, correlation);
    }
    // Orders change within milliseconds, and belong to one customer.
    let cache = headers.entry(header::CACHE_CONTROL);
    cache.or_insert(HeaderValue::from_static("no-store"));
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The method for metrics, spans and logs, as OpenTelemetry names it: a client may send any word as
/// a method, and each would be kept.
fn known_method(method: &Method) -> &'static str {
    let known = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let known = known.into_iter().find(|known| method == known);
    known.unwrap_or("_OTHER")
}

/// Reads the whole body. A client that sends it slowly takes no room from others meanwhile.
async fn receive(body: Body) -> Result<Body, Problem> {
    let received = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await;
    let received = received.map_err(|_elapsed| Problem::slow_body(BODY_TIMEOUT))?;
    received
        .map(Body::from)
        .map_err(|error| match error.into_inner().is::<LengthLimitError>() {
            true => Problem::too_large(MAX_BODY),
            false => Problem::invalid("body", "the body is incomplete"),
        })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The response to a request whose handler panicked; the panic hook has logged the panic.
pub fn panic_response(_: Box<dyn std::any::Any + Send>) -> Response {
    Problem::internal().into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_clients_invent_share_a_name() {
        assert_eq!(known_method(&Method::PATCH), "PATCH");
        for invented in ["patch", "BREW", "X".repeat(60_000).as_str()] {
            let method = Method::from_bytes(invented.as_bytes()).unwrap();
            assert_eq!(known_method(&method), "_OTHER");
        }
    }
}
