//! The payment service provider: a client of the part of Stripe's HTTP API that this service needs
//! (<https://docs.stripe.com/api/payment_intents>). `psp-sandbox` implements the same part.
//!
//! Every request carries an idempotency key, so that it can be repeated. A response that does not
//! arrive is an unknown outcome, never a failure.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use bootstrap::shutdown;
use contracts::{OrderId, PaymentId};
use reqwest::{RequestBuilder, StatusCode, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::{breaker::Breaker, domain::Charge};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_RESPONSE_BYTES: usize = 256 * 1024;

// A worker that stops waits for its calls in flight.
const _: () = assert!(TIMEOUT.as_secs() <= shutdown::STEP.as_secs());

/// A client of the provider; cheap to clone.
#[derive(Clone, Debug)]
pub struct Provider {
    client: reqwest::Client,
    url: String,
    key: SecretString,
    pub breaker: Arc<Breaker>,
}

/// The outcome of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum ProviderOutcome {
    /// The charge was captured.
    Captured { reference: String },
    /// The charge was declined; nothing was captured.
    Declined { code: String },
    /// The amount was refunded.
    Refunded,
    /// It is not known whether the provider did it: repeat the call with the same key.
    Unknown { reason: String },
}

fn unknown(reason: impl ToString) -> ProviderOutcome {
    ProviderOutcome::Unknown {
        reason: reason.to_string(),
    }
}

/// The body of `POST /v1/payment_intents`: confirm and capture at once, without asking the customer.
#[derive(Serialize)]
struct ChargeForm<'a> {
    amount: i64,
    currency: String,
    confirm: bool,
    error_on_requires_action: bool,
    #[serde(rename = "payment_method_types[]")]
    payment_method_type: &'static str,
    #[serde(rename = "metadata[order_id]")]
    order_id: String,
    #[serde(flatten)]
    method: MethodForm<'a>,
}

/// A saved payment method is named; a token describes a card that Stripe has not saved.
#[derive(Serialize)]
#[serde(untagged)]
enum MethodForm<'a> {
    Saved {
        payment_method: &'a str,
    },
    Token {
        #[serde(rename = "payment_method_data[type]")]
        kind: &'static str,
        #[serde(rename = "payment_method_data[card][token]")]
        token: &'a str,
    },
}

impl<'a> MethodForm<'a> {
    fn for_method(method: &'a str) -> Self {
        if method.starts_with("pm_") {
            return Self::Saved {
                payment_method: method,
            };
        }
        Self::Token {
            kind: "card",
            token: method,
        }
    }
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
struct ErrorBody {
    error: ApiError,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
struct ApiError {
    r#type: String,
    code: String,
    decline_code: String,
    message: String,
}

/// Why a call has no result.
#[derive(Debug)]
enum CallError {
    /// The provider refuses: nothing was done and nothing will be.
    Rejected(ApiError),
    /// A lost response, a wrong API key, too many requests, a key in use, an outage: time or an operator
    /// resolves it.
    Unknown(String),
}

impl Provider {
    pub fn new(url: &str, key: SecretString) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .build()
            .context("set up the client of the payment service provider")?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
            key,
            breaker: Arc::default(),
        })
    }

    /// Charges an order; the payment's id is the idempotency key.
    pub async fn charge(
        &self,
        payment: PaymentId,
        order: OrderId,
        charge: &Charge,
    ) -> ProviderOutcome {
        let form = ChargeForm {
            amount: charge.amount.amount(),
            currency: charge.amount.currency().as_str().to_lowercase(),
            confirm: true,
            error_on_requires_action: true,
            payment_method_type: "card",
            order_id: order.to_string(),
            method: MethodForm::for_method(charge.method.as_str()),
        };
        let request = self.client.post(format!("{}/v1/payment_intents", self.url));
        let request = request.header("idempotency-key", payment.to_string());
        match self.call(request.form(&form)).await {
            Ok(body) => self.charge_outcome(&body).await,
            Err(CallError::Rejected(error)) => ProviderOutcome::Declined {
                code: error.most_specific_code(),
            },
            Err(CallError::Unknown(reason)) => unknown(reason),
        }
    }

    /// Refunds a capture.
    pub async fn refund(&self, payment: PaymentId, reference: &str) -> ProviderOutcome {
        let request = self.client.post(format!("{}/v1/refunds", self.url));
        let request = request.header("idempotency-key", format!("{payment}-refund"));
        match self
            .call(request.form(&[("payment_intent", reference)]))
            .await
        {
            Ok(body) => match serde_json::from_slice::<Refund>(&body) {
                Ok(Refund { status }) if matches!(status.as_str(), "succeeded" | "pending") => {
                    ProviderOutcome::Refunded
                }
                Ok(Refund { status }) => unknown(format!("the refund is {status}")),
                Err(error) => unknown(format!("the response contains no refund: {error}")),
            },
            Err(CallError::Rejected(error)) if error.code == "charge_already_refunded" => {
                ProviderOutcome::Refunded
            }
            Err(CallError::Rejected(error)) => unknown(error),
            Err(CallError::Unknown(reason)) => unknown(reason),
        }
    }

    async fn charge_outcome(&self, body: &[u8]) -> ProviderOutcome {
        let mut intent = match serde_json::from_slice::<Intent>(body) {
            Ok(intent) => intent,
            Err(error) => {
                return unknown(format!("the response contains no payment intent: {error}"));
            }
        };
        if intent.status == "processing" {
            // The stored response of our key never changes; only the intent itself does.
            let url = format!("{}/v1/payment_intents/{}", self.url, intent.id);
            let current = self.call(self.client.get(url)).await;
            match current.map(|body| serde_json::from_slice::<Intent>(&body)) {
                Ok(Ok(current)) => intent = current,
                Ok(Err(error)) => return unknown(error),
                Err(CallError::Rejected(error)) => return unknown(error),
                Err(CallError::Unknown(reason)) => return unknown(reason),
            }
        }
        match intent.status.as_str() {
            "succeeded" => ProviderOutcome::Captured {
                reference: intent.id,
            },
            "processing" => unknown("the charge is being processed"),
            other => ProviderOutcome::Declined {
                code: other.to_owned(),
            },
        }
    }

    async fn call(&self, request: RequestBuilder) -> Result<Vec<u8>, CallError> {
        let result = self.send(request).await;
        self.breaker
            .record(!matches!(result, Err(CallError::Unknown(_))));
        result
    }

    async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, CallError> {
        let lost =
            |error: reqwest::Error| CallError::Unknown(format!("{:#}", anyhow::Error::new(error)));
        let request = request.bearer_auth(self.key.expose_secret());
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_RESPONSE_BYTES {
                let reason = format!("the response is larger than {MAX_RESPONSE_BYTES} bytes");
                return Err(CallError::Unknown(reason));
            }
        }
        if status == StatusCode::OK {
            return Ok(body);
        }
        let error = serde_json::from_slice::<ErrorBody>(&body);
        let error = error.map(|body| body.error).unwrap_or_default();
        match (status, error.r#type.as_str()) {
            // The card is declined, or the request is wrong.
            (StatusCode::PAYMENT_REQUIRED, _)
            | (
                StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND,
                "invalid_request_error" | "card_error",
            ) => Err(CallError::Rejected(error)),
            _ => Err(CallError::Unknown(format!("{status}: {error}"))),
        }
    }
}

impl ApiError {
    fn most_specific_code(&self) -> String {
        let codes = [&self.decline_code, &self.code, &self.r#type];
        let code = codes.into_iter().find(|code| !code.is_empty());
        code.cloned().unwrap_or_else(|| "declined".to_owned())
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.most_specific_code(), self.message)
    }
}
