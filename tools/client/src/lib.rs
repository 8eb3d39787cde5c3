//! A client of the HTTP API, for the command line and for e2e.
//!
//! The functions that send requests return a `BoxFuture`. The machine code of an `async fn` is
//! generated in every crate that awaits it; that of a boxed future only here.

mod stream;

use std::{sync::Once, time::Duration};

use anyhow::{Context as _, bail, ensure};
use contracts::CustomerId;
use development_issuer::{AUDIENCE, CUSTOMER_SCOPES};
use futures::{
    future::{BoxFuture, FutureExt as _},
    stream::BoxStream,
};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

pub use stream::StreamEvent;

/// Longer than the gateway itself waits for a service, so that its problem document arrives.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long [`Customer::place`] retries at least.
const PLACE_FOR: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A customer at the gateway; cheap to clone.
#[derive(Clone, Debug)]
pub struct Customer {
    client: reqwest::Client,
    gateway: String,
    pub id: CustomerId,
    /// Of the development issuer, or an API key.
    token: String,
    /// How long requests are repeated.
    patience: Duration,
}

fn token(customer: CustomerId) -> String {
    development_issuer::issue(&customer.to_string(), AUDIENCE, CUSTOMER_SCOPES)
}

/// Lines of an order: SKU and quantity.
pub type Lines<'a> = &'a [(&'a str, u32)];

/// An order that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub id: String,
    /// The requests before the accepted one.
    pub failures: Vec<Failure>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How long it took.
    pub after: Duration,
    /// The response, or what came instead of one.
    pub reason: String,
}

/// An HTTP client for local addresses.
pub fn http_client() -> anyhow::Result<reqwest::Client> {
    // reqwest needs a TLS provider in the process, even where only plain HTTP is spoken.
    static TLS_PROVIDER: Once = Once::new();
    TLS_PROVIDER.call_once(|| {
        let _installed_by_the_caller = rustls::crypto::ring::default_provider().install_default();
    });
    let client = reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .pool_max_idle_per_host(256);
    Ok(client.build()?)
}

impl Customer {
    /// A new customer.
    pub fn new(client: reqwest::Client, gateway: &str) -> Self {
        let id = CustomerId::new();
        Self {
            client,
            gateway: gateway.to_owned(),
            id,
            token: token(id),
            patience: Duration::ZERO,
        }
    }

    /// The same customer, who sends a request again for so long while a service is unavailable or
    /// late.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Another customer who shares the connections of this one.
    pub fn another(&self, id: CustomerId) -> Self {
        self.with_token(id, &token(id))
    }

    /// A caller with this API key of a customer, who shares the connections of this one.
    pub fn with_token(&self, id: CustomerId, token: &str) -> Self {
        Self {
            id,
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// The access token of this customer.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A request to the API as this customer.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().unwrap_or(reqwest::Method::GET);
        self.client
            .request(method, format!("{}{path}", self.gateway))
            .bearer_auth(&self.token)
    }

    /// A request for an order.
    pub fn order_request(
        &self,
        lines: Lines<'_>,
        payment_method: &str,
        key: &str,
    ) -> RequestBuilder {
        let items: Vec<Value> = lines
            .iter()
            .map(|(sku, quantity)| json!({ "sku": sku, "quantity": quantity }))
            .collect();
        self.request("POST", "/api/v1/orders")
            .header("idempotency-key", key)
            .json(&json!({ "items": items, "payment_method": payment_method }))
            .timeout(TIMEOUT)
    }

    /// Sends one request for an order, and returns the response whatever its status.
    pub fn try_place(
        &self,
        lines: Lines<'_>,
        payment_method: &str,
        key: &str,
    ) -> BoxFuture<'static, anyhow::Result<Response>> {
        let request = self.order_request(lines, payment_method, key).send();
        async { request.await.context("no response from the gateway") }.boxed()
    }

    /// Sends a request, and repeats it [for a while](Self::with_patience) when the gateway responds
    /// that a service is unavailable or late. Returns the last response.
    pub fn send(&self, request: RequestBuilder) -> BoxFuture<'_, anyhow::Result<Response>> {
        async move {
            let deadline = Instant::now() + self.patience;
            let mut is_repeated = false;
            loop {
                let Some(again) = request.try_clone() else {
                    return Ok(request.send().await?);
                };
                let response = again.send().await?;
                let is_final = match response.status() {
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => false,
                    // The request before may still hold the idempotency key.
                    StatusCode::CONFLICT => !is_repeated,
                    _ => true,
                };
                if is_final || Instant::now() >= deadline {
                    return Ok(response);
                }
                is_repeated = true;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
        .boxed()
    }

    /// Places an order and returns its id. Retries with the same key while the response says that
    /// a retry is safe, or does not come.
    pub async fn place(&self, lines: Lines<'_>, payment_method: &str) -> anyhow::Result<String> {
        let key = Uuid::now_v7().to_string();
        let timeout = PLACE_FOR.max(self.patience);
        let placed = self.place_with_key(lines, payment_method, &key, timeout);
        Ok(placed.await?.id)
    }

    /// The same, under this key and for so long.
    pub fn place_with_key<'a>(
        &'a self,
        lines: Lines<'a>,
        payment_method: &'a str,
        key: &'a str,
        timeout: Duration,
    ) -> BoxFuture<'a, anyhow::Result<Placed>> {
        async move {
            let deadline = Instant::now() + timeout;
            let mut failures = Vec::new();
            loop {
                let began = Instant::now();
                let reason = match self.try_place(lines, payment_method, key).await {
                    Ok(response) if response.status() == StatusCode::CREATED => {
                        let order: Value = response.json().await?;
                        let id = order["id"].as_str().context("the order has no id")?;
                        return Ok(Placed {
                            id: id.to_owned(),
                            failures,
                        });
                    }
                    Ok(response) => {
                        let status = response.status();
                        let problem: Value = response.json().await.unwrap_or_default();
                        if problem["retry_safe"] != json!(true) {
                            bail!("the gateway rejected the order: {status} {problem}");
                        }
                        format!("{status} {problem}")
                    }
                    Err(error) => format!("{error:#}"),
                };
                ensure!(
                    Instant::now() < deadline,
                    "the order was not accepted within {timeout:?}; last failure: {reason}"
                );
                let after = began.elapsed();
                failures.push(Failure { after, reason });
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
        .boxed()
    }

    /// The JSON document at `path`.
    pub fn get<'a>(&'a self, path: &'a str) -> BoxFuture<'a, anyhow::Result<Value>> {
        async move {
            let request = self.request("GET", path).timeout(TIMEOUT);
            let response = self.send(request).await?;
            let (status, body) = (response.status(), response.text().await?);
            ensure!(status.is_success(), "GET {path}: {status} {body}");
            Ok(serde_json::from_str(&body)?)
        }
        .boxed()
    }

    /// The composed order.
    pub async fn order(&self, id: &str) -> anyhow::Result<Value> {
        self.get(&format!("/api/v1/orders/{id}")).await
    }

    /// [Sends](Self::send) a request to cancel an order, and returns the response whatever its
    /// status.
    pub async fn cancel(&self, id: &str) -> anyhow::Result<Response> {
        let request = self.request("POST", &format!("/api/v1/orders/{id}/cancel"));
        self.send(request.timeout(TIMEOUT)).await
    }

    /// The live stream of an order: server-sent events, until the gateway ends it.
    pub async fn watch(
        &self,
        id: &str,
    ) -> anyhow::Result<BoxStream<'static, anyhow::Result<StreamEvent>>> {
        let request = self.request("GET", &format!("/api/v1/orders/{id}/events"));
        let response = self.send(request).await?.error_for_status()?;
        Ok(stream::events(response))
    }
}
