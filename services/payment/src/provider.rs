//! The payment service provider: a client of the part of Stripe's HTTP API that we use
//! (<https://docs.stripe.com/api/payment_intents>). `psp-sandbox` speaks the same.
//!
//! Every request carries an idempotency key, so that asking again is always safe. An answer that
//! does not come is an unknown outcome, never a failure.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use contracts::{OrderId, PaymentId};
use reqwest::{RequestBuilder, StatusCode, redirect};
use serde::Deserialize;

use crate::{breaker::Breaker, domain::Charge};

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// A client of the provider; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    client: reqwest::Client,
    url: String,
    key: String,
    pub(crate) breaker: Arc<Breaker>,
}

/// What the provider said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The charge was captured.
    Captured { reference: String },
    /// The charge was declined; nothing was captured.
    Declined { code: String },
    /// The amount was given back.
    Refunded,
    /// Nobody knows, or the provider does not want to say now: ask again with the same key.
    Unknown { reason: String },
}

#[derive(Deserialize)]
struct Intent {
    id: String,
    status: String,
}

#[derive(Deserialize)]
struct Refund {
    status: String,
}

#[derive(Deserialize)]
struct Failure {
    error: Fault,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Fault {
    r#type: String,
    code: String,
    decline_code: String,
    message: String,
}

impl Provider {
    pub(crate) fn new(url: &str, key: &str) -> anyhow::Result<Self> {
        // Once per process; a second service in the same process finds it installed.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(DEADLINE)
            .redirect(redirect::Policy::none())
            .build()
            .context("set up the client of the payment service provider")?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self {
            client,
            url,
            key: key.to_owned(),
            breaker: Arc::default(),
        })
    }

    /// Charges an order; the payment's id is the idempotency key.
    pub(crate) async fn charge(
        &self,
        payment: PaymentId,
        order: OrderId,
        charge: &Charge,
    ) -> Answer {
        let method = match charge.method.as_str() {
            saved if saved.starts_with("pm_") => vec![("payment_method", saved)],
            token => vec![
                ("payment_method_data[type]", "card"),
                ("payment_method_data[card][token]", token),
            ],
        };
        let request = self
            .client
            .post(format!("{}/v1/payment_intents", self.url))
            .header("idempotency-key", payment.to_string())
            .form(
                &[
                    &[
                        ("amount", charge.amount.amount.to_string().as_str()),
                        ("currency", &charge.amount.currency.to_lowercase()),
                        ("confirm", "true"),
                        ("error_on_requires_action", "true"),
                        ("payment_method_types[]", "card"),
                        ("metadata[order_id]", &order.to_string()),
                    ][..],
                    &method,
                ]
                .concat(),
            );
        match self.ask(request).await {
            Ok(body) => self.read_intent(&body).await,
            Err(Refusal::Rejected(fault)) => Answer::Declined { code: fault.code() },
            Err(Refusal::Unknown(reason)) => Answer::Unknown { reason },
        }
    }

    /// Gives back what was captured.
    pub(crate) async fn refund(&self, payment: PaymentId, reference: &str) -> Answer {
        let request = self
            .client
            .post(format!("{}/v1/refunds", self.url))
            .header("idempotency-key", format!("{payment}-refund"))
            .form(&[("payment_intent", reference)]);
        match self.ask(request).await {
            Ok(body) => match serde_json::from_slice::<Refund>(&body) {
                Ok(refund) if matches!(refund.status.as_str(), "succeeded" | "pending") => {
                    Answer::Refunded
                }
                Ok(refund) => Answer::Unknown {
                    reason: format!("the refund is {}", refund.status),
                },
                Err(error) => Answer::Unknown {
                    reason: format!("no refund in the answer: {error}"),
                },
            },
            Err(Refusal::Rejected(fault)) if fault.code == "charge_already_refunded" => {
                Answer::Refunded
            }
            Err(Refusal::Rejected(fault)) => Answer::Unknown {
                reason: fault.to_string(),
            },
            Err(Refusal::Unknown(reason)) => Answer::Unknown { reason },
        }
    }

    async fn read_intent(&self, body: &[u8]) -> Answer {
        let mut intent = match serde_json::from_slice::<Intent>(body) {
            Ok(intent) => intent,
            Err(error) => {
                return Answer::Unknown {
                    reason: format!("no payment intent in the answer: {error}"),
                };
            }
        };
        if intent.status == "processing" {
            // The answer to our key stays the same for ever; only the intent itself moves on.
            let request = self
                .client
                .get(format!("{}/v1/payment_intents/{}", self.url, intent.id));
            match self
                .ask(request)
                .await
                .map(|body| serde_json::from_slice::<Intent>(&body))
            {
                Ok(Ok(now)) => intent = now,
                Ok(Err(error)) => {
                    return Answer::Unknown {
                        reason: error.to_string(),
                    };
                }
                Err(refusal) => {
                    return Answer::Unknown {
                        reason: refusal.to_string(),
                    };
                }
            }
        }
        match intent.status.as_str() {
            "succeeded" => Answer::Captured {
                reference: intent.id,
            },
            "processing" => Answer::Unknown {
                reason: "the charge is being processed".to_owned(),
            },
            other => Answer::Declined {
                code: other.to_owned(),
            },
        }
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Vec<u8>, Refusal> {
        let answer = self.send(request).await;
        self.breaker
            .note(!matches!(answer, Err(Refusal::Unknown(_))));
        answer
    }

    async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, Refusal> {
        let unknown =
            |error: reqwest::Error| Refusal::Unknown(format!("{:#}", anyhow::Error::new(error)));
        let mut response = request
            .bearer_auth(&self.key)
            .send()
            .await
            .map_err(unknown)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unknown)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(Refusal::Unknown(format!(
                    "the answer is larger than {MAX_ANSWER_BYTES} bytes"
                )));
            }
        }
        if status == StatusCode::OK {
            return Ok(body);
        }
        let fault = serde_json::from_slice::<Failure>(&body)
            .map(|failure| failure.error)
            .unwrap_or_default();
        match (status, fault.r#type.as_str()) {
            // The card is at fault, or what the customer gave us: nothing was done and nothing will
            // be.
            (StatusCode::PAYMENT_REQUIRED, _)
            | (
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND,
                "invalid_request_error" | "card_error",
            ) => Err(Refusal::Rejected(fault)),
            // A wrong API key, too many requests, a key in use, an outage: all mended by time or by
            // an operator.
            _ => Err(Refusal::Unknown(format!("{status}: {fault}"))),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Rejected(Fault),
    #[error("{0}")]
    Unknown(String),
}

impl Fault {
    /// The most telling code.
    fn code(&self) -> String {
        let code = [&self.decline_code, &self.code, &self.r#type]
            .into_iter()
            .find(|code| !code.is_empty());
        code.cloned().unwrap_or_else(|| "declined".to_owned())
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code(), self.message)
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
