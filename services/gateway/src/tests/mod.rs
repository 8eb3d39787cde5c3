//! The router against stub services: real HTTP semantics and real gRPC, no other process.

mod arbitrary;
mod identity;
mod invalid_requests;
mod keys;
mod limits;
mod responses;
mod stub;

use api_keys::ApiKeySettings;
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, request},
};
use bootstrap::Replicas;
use contracts::Service;
use development_issuer::{AUDIENCE, CUSTOMER_SCOPES};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

use crate::{
    backends::Backends, edge::Edge, identity::IdentitySettings, limits::LimitSettings, live::Live,
    router,
};
use stub::Stub;

const CUSTOMER: &str = "01890000-0000-7000-8000-000000000001";
const ORDER: &str = "01890000-0000-7000-8000-000000000002";
const VALID_ORDER: &str =
    r#"{"items":[{"sku":"SKU-0001","quantity":1}],"payment_method":"tok_visa"}"#;

/// The router in front of a stub, which ends with it.
struct Api {
    router: Router,
    _stop: DropGuard,
}

struct Response {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Api {
    /// With the development issuer, and without limits.
    async fn new(stub: Stub) -> Self {
        Self::with_edge(stub, edge(), &identity()).await
    }

    async fn with_edge(stub: Stub, edge: Edge, identity: &IdentitySettings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(bootstrap::grpc::serve(
            listener,
            stub.routes(),
            None,
            stop.clone(),
        ));
        let replicas = Replicas::new(&url, Service::Order, None).unwrap();
        Self {
            router: router(
                Backends::new(|_| replicas.clone(), Live::default()),
                edge,
                identity,
            ),
            _stop: stop.drop_guard(),
        }
    }

    async fn send(&self, request: Request<Body>) -> Response {
        let response = self.router.clone().oneshot(request).await.unwrap();
        Response::read(response).await
    }

    /// The status, without the body: that of a live stream ends late.
    async fn send_head(&self, request: Request<Body>) -> StatusCode {
        let response = self.router.clone().oneshot(request).await.unwrap();
        response.status()
    }

    async fn get(&self, path: &str) -> Response {
        self.send(get(path).body(Body::empty()).unwrap()).await
    }

    async fn create_order(&self) -> Response {
        self.send(create_order().body(VALID_ORDER.into()).unwrap())
            .await
    }
}

impl Response {
    async fn read(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.unwrap();
        Self {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.into()).unwrap(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    /// The body, after checking that it is a problem document for this response.
    fn problem(&self) -> Value {
        let problem = self.json();
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        assert!(self.headers.contains_key("x-correlation-id"), "{problem}");
        problem
    }
}

fn identity() -> IdentitySettings {
    IdentitySettings {
        issuer: String::new(),
        audience: AUDIENCE.to_owned(),
        api_keys: ApiKeySettings::default(),
    }
}

fn without_limits() -> LimitSettings {
    LimitSettings {
        customer_requests_per_second: 0,
        api_key_requests_per_second: 0,
        address_requests_per_second: 0,
        trusted_proxies: 0,
    }
}

fn edge() -> Edge {
    Edge::new(&identity(), without_limits()).unwrap()
}

/// The `Authorization` of a customer.
fn authorization(customer: &str) -> String {
    let token = development_issuer::issue(customer, AUDIENCE, CUSTOMER_SCOPES);
    format!("Bearer {token}")
}

fn get(path: &str) -> request::Builder {
    Request::get(path).header("authorization", authorization(CUSTOMER))
}

/// A valid request, but for the body.
fn create_order() -> request::Builder {
    Request::post("/api/v1/orders")
        .header("authorization", authorization(CUSTOMER))
        .header("idempotency-key", "one")
        .header("content-type", "application/json")
}
