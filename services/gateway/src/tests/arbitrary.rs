//! Bytes that no client sends on purpose. `e2e/fuzz/run` tries them for ten minutes.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Request},
};
use proptest::{collection::vec, prelude::*};
use tokio::runtime::Runtime;

use super::{Api, CUSTOMER, Stub, VALID_ORDER, authorization};

const HEADERS: [&str; 5] = [
    "idempotency-key",
    "x-correlation-id",
    "traceparent",
    "last-event-id",
    "x-forwarded-for",
];

/// A valid order with some bytes replaced by others.
fn damaged_order() -> impl Strategy<Value = Vec<u8>> {
    let end = VALID_ORDER.len();
    (0..end, 0..end, vec(any::<u8>(), 0..8)).prop_map(|(one, other, bytes)| {
        let mut order = VALID_ORDER.as_bytes().to_vec();
        order.splice(one.min(other)..one.max(other), bytes);
        order
    })
}

/// A part of a path or a query.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn arbitrary_requests_cause_no_server_error(
        body in prop_oneof![vec(any::<u8>(), 0..200), damaged_order()],
        headers in vec((0..HEADERS.len(), vec(any::<u8>(), 0..60)), 0..4),
        text in vec(any::<u8>(), 0..40),
    ) {
        let send = async || {
            let api = Api::new(Stub::default()).await;
            let text = escaped(&text);
            for (method, path) in [
                ("POST", "/api/v1/orders".to_owned()),
                ("GET", format!("/api/v1/orders?cursor={text}")),
                ("GET", format!("/api/v1/orders/{text}")),
                ("GET", format!("/api/v1/products?limit={text}")),
                ("GET", format!("/api/v1/products/{text}")),
                ("POST", "/dev/token".to_owned()),
            ] {
                let mut request = Request::builder().method(method).uri(path);
                request = request.header("content-type", "application/json");
                request = request.header("authorization", authorization(CUSTOMER));
                for (name, value) in &headers {
                    if let Ok(value) = HeaderValue::from_bytes(value) {
                        request = request.header(HeaderName::from_static(HEADERS[*name]), value);
                    }
                }
                let status = api.send_head(request.body(Body::from(body.clone())).unwrap()).await;
                assert!(!status.is_server_error() || status == 504, "{method}: {status}");
            }
        };
        Runtime::new().unwrap().block_on(send());
    }

    #[test]
    fn arbitrary_changes_make_a_token_invalid(at: prop::sample::Index, byte in 0x21u8..0x7f) {
        let send = async || {
            let api = Api::new(Stub::default()).await;
            let valid = authorization(CUSTOMER).into_bytes();
            let mut token = valid.clone();
            let begin = "Bearer ".len();
            let at = begin + at.index(token.len() - begin);
            token[at] = byte;
            let request = || {
                let request = Request::get("/api/v1/orders").header("authorization", token.clone());
                api.send_head(request.body(Body::empty()).unwrap())
            };
            let mut status = request().await;
            for _ in 0..10 {
                if status == 504 {
                    status = request().await;
                }
            }
            let expected = if token == valid { 200 } else { 401 };
            assert_eq!(status, expected, "{}", String::from_utf8_lossy(&token));
        };
        Runtime::new().unwrap().block_on(send());
    }
}
