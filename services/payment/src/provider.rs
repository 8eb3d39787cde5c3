//! The payment service provider: a client of the part of Stripe's HTTP API that this service needs
//! (<https://docs.stripe.com/api>). `psp-sandbox` implements the same part. `charge` and `refund`
//! decide what to call.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use bootstrap::shutdown;
use contracts::{MAX_TEXT, OrderId};
use reqwest::{RequestBuilder, StatusCode, Url, header, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error},
};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use crate::breaker::Breaker;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long all requests of one call may take. A worker that stops waits for its calls.
pub const CALL_TIMEOUT: Duration = shutdown::STEP;
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// The most that Stripe lists at once.
const PAGE: &str = "100";
/// How far clocks of the provider's machines may differ, in a lookup by time.
const CLOCK_SLACK: Duration = Duration::from_secs(30);

/// A client of the provider; cheap to clone.
#[derive(Clone, Debug)]
pub struct Provider {
    client: reqwest::Client,
    url: String,
    key: SecretString,
    /// For charges, and for refunds.
    pub charges: Arc<Breaker>,
    pub refunds: Arc<Breaker>,
}

/// The outcome of a call.
#[derive(Debug, PartialEq, Eq)]
pub enum ProviderOutcome {
    /// The charge was captured.
    Captured { reference: String },
    /// The charge was declined; nothing was captured.
    Declined { code: String },
    /// Nothing was charged, and nothing will be under the keys used so far.
    NotCharged,
    /// The amount was refunded.
    Refunded,
    /// The refund was accepted; it succeeds or fails later.
    RefundPending { id: String },
    /// There is no refund, and there will be none under the keys used so far.
    NotRefunded { reason: String },
    /// It is not known whether the provider did it. `is_over`: this call is not being executed any
    /// more; another one may be.
    Unknown { reason: String, is_over: bool },
}

/// A charge at the provider.
#[derive(Deserialize, Debug)]
pub struct Intent {
    #[serde(deserialize_with = "id")]
    pub id: String,
    pub status: String,
    #[serde(default)]
    created: i64,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    last_payment_error: Option<ApiError>,
}

/// A refund at the provider.
#[derive(Deserialize, Debug)]
pub struct Refund {
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// Stripe may leave it out.
    pub status: Option<String>,
    #[serde(default)]
    pub amount: i64,
}

#[derive(Deserialize)]
struct List<T> {
    data: Vec<T>,
    has_more: bool,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ApiError,
}

/// An error in Stripe's terms.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub struct ApiError {
    r#type: String,
    pub code: Option<String>,
    decline_code: Option<String>,
    /// The parameter of the request that is wrong.
    param: Option<String>,
    message: Option<String>,
}

/// Why a request has no result.
#[derive(Debug)]
pub enum CallError {
    /// The provider refuses this request, and does nothing.
    Rejected(ApiError),
    /// The stored failure of an earlier request with this key. The key executes nothing any more,
    /// and what it has executed can be looked up.
    Stored(String),
    /// The key was first used with another body.
    OtherBody(String),
    /// A lost response, a wrong API key, too many requests, a key in use, an outage: time or an
    /// operator resolves it. `is_over`: this request is not being executed any more.
    Unknown { reason: String, is_over: bool },
}

/// A response, and when the provider sent it by its own clock.
struct Response {
    body: Vec<u8>,
    sent_at: Option<OffsetDateTime>,
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
            charges: Arc::new(Breaker::new("charges")),
            refunds: Arc::new(Breaker::new("refunds")),
        })
    }

    /// Asks for a charge. `body` is an encoded form, and is sent as it is.
    pub async fn create_intent(&self, key: &str, body: String) -> Result<Intent, CallError> {
        let request = self.client.post(format!("{}/v1/payment_intents", self.url));
        let request = request
            .header("idempotency-key", key)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
        let response = self.call(request, &self.charges).await?;
        // A proxy may have answered, while the API is still at work.
        let intent: Intent = parse(&response).map_err(|error| CallError::Unknown {
            reason: error.to_string(),
            is_over: false,
        })?;
        if intent.status != "processing" {
            return Ok(intent);
        }
        // The stored response of our key never changes; only the intent itself does.
        let url = format!("{}/v1/payment_intents/{}", self.url, intent.id);
        let current = self.call(self.client.get(url), &self.charges).await;
        parse(&current.map_err(|error| match error {
            // This read was rejected, not the charge.
            CallError::Rejected(error) => over(error),
            other => other,
        })?)
    }

    /// The charge of an order, whose first call was at most `age` ago.
    ///
    /// Stripe lists the newest first and does not filter by metadata, so this reads back to that
    /// time. The time is counted from the provider's own clock: ours may differ from it.
    pub async fn find_intent(
        &self,
        order: OrderId,
        age: Duration,
    ) -> Result<Option<Intent>, CallError> {
        let order = order.to_string();
        let is_ours = |intent: &Intent| intent.metadata.get("order_id") == Some(&order);
        let mut oldest = None;
        let mut cursor: Option<String> = None;
        loop {
            let mut query = vec![("limit", PAGE)];
            query.extend(cursor.as_deref().map(|cursor| ("starting_after", cursor)));
            let response = self.list("/v1/payment_intents", &query, &self.charges);
            let response = response.await?;
            let page: List<Intent> = parse(&response)?;
            let oldest = match (oldest, response.sent_at) {
                (Some(oldest), _) => oldest,
                (None, Some(now)) => *oldest.insert(now - age - CLOCK_SLACK),
                (None, None) => return Err(over("the response has no date")),
            };
            let last = page.data.last().map(|last| (last.id.clone(), last.created));
            if let Some(found) = page.data.into_iter().find(is_ours) {
                return Ok(Some(found));
            }
            match last {
                Some((id, created)) if page.has_more && created >= oldest.unix_timestamp() => {
                    cursor = Some(id);
                }
                _ => return Ok(None),
            }
        }
    }

    /// Asks for a refund of a whole charge.
    pub async fn create_refund(&self, key: &str, intent: &str) -> Result<Refund, CallError> {
        let request = self.client.post(format!("{}/v1/refunds", self.url));
        let request = request.header("idempotency-key", key);
        let form = [("payment_intent", intent)];
        parse(&self.call(request.form(&form), &self.refunds).await?)
    }

    /// A refund as it is now.
    pub async fn get_refund(&self, id: &str) -> Result<Refund, CallError> {
        let url = format!("{}/v1/refunds/{id}", self.url);
        parse(&self.call(self.client.get(url), &self.refunds).await?)
    }

    /// The refunds of a charge.
    pub async fn find_refunds(&self, intent: &str) -> Result<Vec<Refund>, CallError> {
        let query = [("payment_intent", intent), ("limit", PAGE)];
        let list = self.list("/v1/refunds", &query, &self.refunds).await?;
        let list: List<Refund> = parse(&list)?;
        Ok(list.data)
    }

    async fn list(
        &self,
        path: &str,
        query: &[(&str, &str)],
        breaker: &Breaker,
    ) -> Result<Response, CallError> {
        let url = Url::parse_with_params(&format!("{}{path}", self.url), query);
        self.call(self.client.get(url.map_err(over)?), breaker)
            .await
    }

    async fn call(
        &self,
        request: RequestBuilder,
        breaker: &Breaker,
    ) -> Result<Response, CallError> {
        let result = self.send(request).await;
        breaker.record(!matches!(result, Err(CallError::Unknown { .. })));
        result
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CallError> {
        let lost = |error: reqwest::Error| CallError::Unknown {
            // Without a connection nothing was sent.
            is_over: error.is_connect(),
            reason: format!("{:#}", anyhow::Error::new(error)),
        };
        let request = request.bearer_auth(self.key.expose_secret());
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let is_replayed = header("idempotent-replayed") == Some("true");
        let sent_at = header("date").and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_RESPONSE_BYTES {
                return Err(CallError::Unknown {
                    reason: format!("the response is larger than {MAX_RESPONSE_BYTES} bytes"),
                    is_over: false,
                });
            }
        }
        if status == StatusCode::OK {
            return Ok(Response { body, sent_at });
        }
        let error = serde_json::from_slice::<ErrorBody>(&body);
        let error = error.map(|body| body.error).unwrap_or_default();
        Err(classify(status, is_replayed, error))
    }
}

fn classify(status: StatusCode, is_replayed: bool, error: ApiError) -> CallError {
    let reason = format!("{status}: {error}");
    match (status, error.r#type.as_str()) {
        // The card is declined, or the request is wrong. That a request was wrong when the key was
        // used first says nothing about now.
        (StatusCode::BAD_REQUEST | StatusCode::PAYMENT_REQUIRED, "card_error") => {
            CallError::Rejected(error)
        }
        (
            StatusCode::BAD_REQUEST | StatusCode::PAYMENT_REQUIRED | StatusCode::NOT_FOUND,
            "invalid_request_error",
        ) if !is_replayed => CallError::Rejected(error),
        (StatusCode::BAD_REQUEST, "idempotency_error") => CallError::OtherBody(reason),
        _ if is_replayed => CallError::Stored(reason),
        // An error of the API itself has a type; without one a proxy has answered, and the API may
        // still be at work.
        (_, kind) => CallError::Unknown {
            is_over: !kind.is_empty(),
            reason,
        },
    }
}

fn over(reason: impl ToString) -> CallError {
    CallError::Unknown {
        reason: reason.to_string(),
        is_over: true,
    }
}

fn parse<T: DeserializeOwned>(response: &Response) -> Result<T, CallError> {
    serde_json::from_slice(&response.body)
        .map_err(|error| over(format!("the response cannot be read: {error}")))
}

/// The id of a thing at the provider. It becomes part of a path and of a row.
fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match (1..=MAX_TEXT).contains(&id.len()) && id.bytes().all(is_plain) {
        true => Ok(id),
        false => Err(D::Error::custom(
            "expected an id of letters, digits, _ and -",
        )),
    }
}

/// What of a text of the provider is stored, shown and logged: PostgreSQL stores no NUL, and no log
/// should get a second line.
fn printable(text: &str) -> String {
    let shown = text.chars().filter(|character| !character.is_control());
    shown.take(MAX_TEXT).collect()
}

impl Intent {
    /// Whether this is the end of the charge, and not a moment on the way to it: Stripe makes an
    /// intent before it confirms it, and may list it meanwhile
    /// (<https://docs.stripe.com/payments/paymentintents/lifecycle>).
    pub fn is_settled(&self) -> bool {
        match self.status.as_str() {
            "succeeded" | "canceled" => true,
            _ => self.last_payment_error.is_some(),
        }
    }

    /// What this charge means for the payment.
    pub fn outcome(self) -> ProviderOutcome {
        match self.status.as_str() {
            "succeeded" => ProviderOutcome::Captured { reference: self.id },
            "processing" => ProviderOutcome::Unknown {
                reason: "the charge is being processed".to_owned(),
                is_over: true,
            },
            status => ProviderOutcome::Declined {
                code: self
                    .last_payment_error
                    .unwrap_or_else(|| ApiError {
                        code: Some(status.to_owned()),
                        ..ApiError::default()
                    })
                    .most_specific_code(),
            },
        }
    }
}

impl CallError {
    /// The outcome of a call whose effect is not known.
    pub fn unknown(self) -> ProviderOutcome {
        ProviderOutcome::Unknown {
            reason: self.to_string(),
            is_over: !matches!(self, Self::Unknown { is_over: false, .. }),
        }
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rejected(error) => error.fmt(f),
            Self::Stored(reason) | Self::OtherBody(reason) | Self::Unknown { reason, .. } => {
                reason.fmt(f)
            }
        }
    }
}

impl ApiError {
    /// The card is declined. That is stored under the key: no call with it charges the card.
    pub fn is_of_the_card(&self) -> bool {
        self.r#type == "card_error"
    }

    /// The charge cannot be made as it is: its method or its amount is wrong
    /// (<https://docs.stripe.com/error-codes>). Other refusals are about the account, its settings
    /// or the address of the API, and say nothing about the charge.
    pub fn is_of_the_charge(&self) -> bool {
        let code = self.code.as_deref();
        let param = self.param.as_deref().unwrap_or_default();
        let is_of_the_method =
            param == "payment_method" || param.starts_with("payment_method_data[");
        let is_of_the_charge = matches!(
            code,
            Some(
                "amount_too_small" | "amount_too_large" | "resource_missing" | "token_already_used"
            )
        );
        self.is_of_the_card()
            || is_of_the_charge
            || (is_of_the_method && code != Some("parameter_unknown"))
    }

    pub fn most_specific_code(self) -> String {
        let Self {
            r#type,
            code,
            decline_code,
            ..
        } = self;
        let codes = [decline_code, code, Some(r#type)].into_iter().flatten();
        let codes = codes.map(|code| printable(&code));
        let mut codes = codes.filter(|code| !code.is_empty());
        codes.next().unwrap_or_else(|| "declined".to_owned())
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self.decline_code.as_ref().or(self.code.as_ref());
        let code = printable(code.unwrap_or(&self.r#type));
        let message = printable(self.message.as_deref().unwrap_or_default());
        write!(f, "{code} {message}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn read<T: DeserializeOwned>(body: Vec<u8>) -> Option<T> {
        let sent_at = None;
        parse(&Response { body, sent_at }).ok()
    }

    fn is_printable(text: &str) -> bool {
        text.chars().count() <= MAX_TEXT && !text.contains(char::is_control)
    }

    /// A proxy answers for the provider, which may still be at work.
    #[tokio::test]
    async fn an_unreadable_answer_to_a_charge_is_as_good_as_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _head = socket.read(&mut [0; 4096]).await.unwrap();
            let page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>";
            socket.write_all(page).await.unwrap();
            socket
        };
        let _by_another_test = rustls::crypto::ring::default_provider().install_default();
        let provider = Provider::new(&url, "sk_test_x".into()).unwrap();
        let charge = provider.create_intent("key", "amount=1".to_owned());
        let (_socket, charged) = tokio::join!(answer, charge);
        let error = charged.unwrap_err();
        assert!(
            matches!(error, CallError::Unknown { is_over: false, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_refund_without_a_status_is_read() {
        let refund = json!({ "id": "re_1", "status": null }).to_string();
        let refund = read::<Refund>(refund.into_bytes()).unwrap();
        assert_eq!(refund.status, None);
    }

    #[test]
    fn an_intent_that_is_not_confirmed_yet_is_neither_captured_nor_declined() {
        let intent = |status: &str, error: serde_json::Value| {
            let answer = json!({ "id": "pi_1", "status": status, "last_payment_error": error });
            read::<Intent>(answer.to_string().into_bytes()).unwrap()
        };
        let declined = json!({ "type": "card_error", "code": "card_declined" });
        assert!(intent("succeeded", json!(null)).is_settled());
        assert!(intent("canceled", json!(null)).is_settled());
        assert!(intent("requires_payment_method", declined).is_settled());
        for status in [
            "requires_payment_method",
            "requires_confirmation",
            "requires_action",
            "processing",
        ] {
            assert!(!intent(status, json!(null)).is_settled(), "{status}");
        }
    }

    proptest! {
        /// `e2e/fuzz/run` tries ten minutes of them.
        #[test]
        fn any_answer_of_the_provider_is_read_or_refused(
            bytes: Vec<u8>,
            id in prop_oneof![any::<String>(), "[a-z_0-9]{1,300}"],
            status in prop_oneof![any::<String>(), Just("succeeded".to_owned())],
            code: Option<String>,
            message: String,
        ) {
            let _refused = read::<Intent>(bytes.clone());
            let _refused = read::<Refund>(bytes.clone());
            let _refused = read::<List<Intent>>(bytes.clone());
            let _refused = read::<ErrorBody>(bytes);
            let error = json!({ "type": message, "decline_code": code, "message": message });
            let shown = read::<ErrorBody>(json!({ "error": error }).to_string().into_bytes());
            prop_assert!(!shown.unwrap().error.to_string().contains(char::is_control));
            let answer = json!({ "id": id, "status": status, "last_payment_error": error });
            let Some(intent) = read::<Intent>(answer.to_string().into_bytes()) else {
                return Ok(());
            };
            match intent.outcome() {
                ProviderOutcome::Captured { reference: text }
                | ProviderOutcome::Declined { code: text } => {
                    prop_assert!(is_printable(&text) && !text.is_empty(), "{text:?}");
                }
                _ => {}
            }
        }
    }
}
