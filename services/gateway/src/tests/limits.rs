//! Callers that send too many requests.

use axum::{body::Body, http::Request};

use super::{Api, CUSTOMER, ORDER, Stub, authorization, get, identity};
use crate::{edge::Edge, limits::LimitSettings};

/// One request per second, and a burst of two.
async fn api() -> Api {
    let limits = LimitSettings {
        customer_requests_per_second: 1,
        address_requests_per_second: 1,
        trusted_proxies: 1,
    };
    let edge = Edge::new(&identity(), limits).unwrap();
    Api::with_edge(Stub::default(), edge, &identity()).await
}

#[tokio::test]
async fn a_customer_who_sends_too_many_requests_is_refused_and_others_are_not() {
    let api = api().await;
    for remaining in [1, 0] {
        let response = api.get("/api/v1/orders").await;
        assert_eq!(response.status, 200);
        let limit = response.headers["ratelimit"].to_str().unwrap();
        let expected = format!("\"customer\";r={remaining};t={}", 2 - remaining);
        assert_eq!(limit, expected);
        assert_eq!(response.headers["ratelimit-policy"], "\"customer\";q=2;w=2");
    }
    let refused = api.get("/api/v1/orders").await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.problem()["retry_safe"], true);
    let other = Request::get("/api/v1/orders").header("authorization", authorization(ORDER));
    let other = api.send(other.body(Body::empty()).unwrap()).await;
    assert_eq!(other.status, 200);
    // The same customer with another token is the same customer.
    let again = get("/api/v1/orders").body(Body::empty()).unwrap();
    assert_eq!(api.send(again).await.status, 429);
    assert_eq!(authorization(CUSTOMER).split('.').count(), 3);
}

#[tokio::test]
async fn an_address_that_guesses_tokens_is_refused_and_valid_tokens_from_it_are_not() {
    let api = api().await;
    let guess = async |address: &str| {
        let request = Request::get("/api/v1/orders")
            .header("x-forwarded-for", address)
            .header("authorization", "Bearer x.y.z");
        api.send(request.body(Body::empty()).unwrap())
            .await
            .status
            .as_u16()
    };
    let statuses = [
        guess("192.0.2.1").await,
        guess("192.0.2.1").await,
        guess("192.0.2.1").await,
    ];
    assert_eq!(statuses, [401, 401, 429]);
    assert_eq!(guess("192.0.2.2").await, 401, "another address");
    let valid = get("/api/v1/orders").header("x-forwarded-for", "192.0.2.1");
    assert_eq!(
        api.send(valid.body(Body::empty()).unwrap()).await.status,
        200
    );
    let public = Request::get("/api/v1/products").header("x-forwarded-for", "192.0.2.1");
    assert_eq!(
        api.send(public.body(Body::empty()).unwrap()).await.status,
        429
    );
}
