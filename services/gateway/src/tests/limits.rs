//! Callers that send too many requests.

use axum::{body::Body, http::Request};
use futures::future::join_all;
use uuid::Uuid;

use super::{Api, ORDER, Response, Stub, authorization, get, identity};
use crate::{edge::Edge, limits::LimitSettings};

/// One request per second, and a burst of two. Nobody takes as long for as many.
async fn api() -> Api {
    let limits = LimitSettings {
        customer_requests_per_second: 1,
        api_key_requests_per_second: 0,
        address_requests_per_second: 1,
        trusted_proxies: 1,
    };
    let edge = Edge::new(&identity(), limits).unwrap();
    Api::with_edge(Stub::default(), edge, &identity()).await
}

const MANY: usize = 50;

#[tokio::test]
async fn a_customer_who_sends_too_many_requests_is_refused_and_others_are_not() {
    let api = api().await;
    let first = api.get("/api/v1/orders").await;
    assert_eq!(first.status, 200);
    assert_eq!(first.headers["ratelimit"], "\"customer\";r=1;t=1");
    assert_eq!(first.headers["ratelimit-policy"], "\"customer\";q=2;w=2");
    let mut responses = join_all((0..MANY).map(|_| api.get("/api/v1/orders"))).await;
    responses.retain(|response| response.status == 429);
    let refused = responses.pop().expect("one of them is one too many");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.problem()["retry_safe"], true);
    let other = Request::get("/api/v1/orders").header("authorization", authorization(ORDER));
    let other = api.send(other.body(Body::empty()).unwrap()).await;
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn an_address_that_guesses_tokens_is_refused_and_valid_tokens_from_it_are_not() {
    let api = api().await;
    let from = async |address: &str, authorization: &str| -> Response {
        let request = Request::get("/api/v1/orders")
            .header("x-forwarded-for", address)
            .header("authorization", authorization);
        api.send(request.body(Body::empty()).unwrap()).await
    };
    let (address, guess) = ("192.0.2.1", "Bearer x.y.z");
    let valid = get("/").body(Body::empty()).unwrap();
    let valid = valid.headers()["authorization"].to_str().unwrap();
    assert_eq!(from(address, valid).await.status, 200);
    assert_eq!(from(address, guess).await.status, 401);
    let guesses = join_all((0..MANY).map(|_| from(address, guess))).await;
    assert!(guesses.iter().any(|response| response.status == 429));
    let elsewhere = from("192.0.2.2", guess).await;
    assert_eq!(elsewhere.status, 401, "another address");
    // The second of two that a customer may send at once.
    assert_eq!(from(address, valid).await.status, 200);
    // New tokens are verified only so often, too.
    let customers = (0..MANY).map(|_| authorization(&Uuid::new_v4().to_string()));
    let tokens: Vec<String> = customers.collect();
    let responses = join_all(tokens.iter().map(|token| from(address, token))).await;
    assert!(responses.iter().any(|response| response.status == 429));
}
