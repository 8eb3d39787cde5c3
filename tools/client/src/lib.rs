//! A client of the HTTP API, for the commands and for e2e.

use std::time::Duration;

use anyhow::{Context as _, bail};
use contracts::CustomerId;
use futures::{Stream, TryStreamExt as _, stream};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

/// A customer at the gateway; cheap to clone.
#[derive(Clone, Debug)]
pub struct Customer {
    client: reqwest::Client,
    gateway: String,
    /// Who it is.
    pub id: CustomerId,
}

/// An event of a live stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// What it is called: the event's type, or `end`.
    pub event: String,
    /// Its data.
    pub data: Value,
}

/// Lines of an order.
pub type Lines<'a> = &'a [(&'a str, u32)];

/// An HTTP client that talks to local addresses.
pub fn http_client() -> anyhow::Result<reqwest::Client> {
    // Once per process; whoever was first is fine.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .pool_max_idle_per_host(256)
        .build()?)
}

impl Customer {
    /// A customer who has not been seen before.
    pub fn new(client: reqwest::Client, gateway: &str) -> Self {
        Self {
            client,
            gateway: gateway.to_owned(),
            id: CustomerId::new(),
        }
    }

    /// Another customer with the same connections.
    pub fn another(&self, id: CustomerId) -> Self {
        Self { id, ..self.clone() }
    }

    /// A request to the API as this customer.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().unwrap_or(reqwest::Method::GET);
        self.client
            .request(method, format!("{}{path}", self.gateway))
            .header("x-customer-id", self.id.to_string())
    }

    /// Sends an order with a key and returns the answer, whatever it is.
    pub async fn try_place(
        &self,
        lines: Lines<'_>,
        method: &str,
        key: &str,
    ) -> anyhow::Result<Response> {
        let items: Vec<Value> = lines
            .iter()
            .map(|(sku, quantity)| json!({ "sku": sku, "quantity": quantity }))
            .collect();
        let body = json!({ "items": items, "payment_method": method });
        let request = self
            .request("POST", "/api/v1/orders")
            .header("idempotency-key", key)
            .json(&body);
        request
            .timeout(Duration::from_secs(20))
            .send()
            .await
            .context("no answer from the gateway")
    }

    /// Places an order and returns its id. Sends it again with the same key when the answer says
    /// that this is safe or does not come.
    pub async fn place(&self, lines: Lines<'_>, method: &str) -> anyhow::Result<String> {
        let key = Uuid::now_v7().to_string();
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let failure = match self.try_place(lines, method, &key).await {
                Ok(answer) if answer.status() == StatusCode::CREATED => {
                    let order: Value = answer.json().await?;
                    return Ok(order["id"]
                        .as_str()
                        .context("the order has no id")?
                        .to_owned());
                }
                Ok(answer) => {
                    let (status, problem) = (
                        answer.status(),
                        answer.json::<Value>().await.unwrap_or_default(),
                    );
                    if problem["retry_safe"] != json!(true) {
                        bail!("the order was refused: {status} {problem}");
                    }
                    format!("{status} {problem}")
                }
                Err(error) => format!("{error:#}"),
            };
            if tokio::time::Instant::now() > until {
                bail!("the order could not be placed within 60 s; last: {failure}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Reads something as JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self
            .request("GET", path)
            .timeout(Duration::from_secs(20))
            .send()
            .await?;
        let (status, body) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status.is_success(), "GET {path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// The composed order.
    pub async fn order(&self, id: &str) -> anyhow::Result<Value> {
        self.get(&format!("/api/v1/orders/{id}")).await
    }

    /// Cancels an order and returns the answer, whatever it is.
    pub async fn cancel(&self, id: &str) -> anyhow::Result<Response> {
        Ok(self
            .request("POST", &format!("/api/v1/orders/{id}/cancel"))
            .send()
            .await?)
    }

    /// The live stream of an order.
    pub async fn watch(
        &self,
        id: &str,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Told>> + use<>> {
        let answer = self
            .request("GET", &format!("/api/v1/orders/{id}/events"))
            .send()
            .await?;
        let answer = answer.error_for_status()?;
        let pieces = Box::pin(answer.bytes_stream());
        Ok(stream::try_unfold(
            (pieces, String::new()),
            async |(mut pieces, mut text)| {
                loop {
                    if let Some((block, rest)) = text.split_once("\n\n") {
                        let (told, rest) = (read(block), rest.to_owned());
                        text = rest;
                        match told {
                            Some(told) => return Ok(Some((told, (pieces, text)))),
                            // A comment that keeps the connection open.
                            None => continue,
                        }
                    }
                    match pieces.try_next().await? {
                        Some(piece) => text.push_str(std::str::from_utf8(&piece)?),
                        None => return Ok(None),
                    }
                }
            },
        ))
    }
}

fn read(block: &str) -> Option<Told> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(Told {
        event: field("event")?.to_owned(),
        data: serde_json::from_str(field("data")?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_stream_are_read_and_comments_passed_over() {
        assert_eq!(read(": keep-alive"), None);
        let told = Told {
            event: "end".to_owned(),
            data: json!({ "status": "confirmed" }),
        };
        assert_eq!(
            read("event: end\ndata: {\"status\":\"confirmed\"}"),
            Some(told)
        );
    }
}
