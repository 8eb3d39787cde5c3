//! What the provider knows: intents with their refunds, its responses by idempotency key, and the
//! money of each order. Plain data; `journal` keeps it on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// The parameters of a request, from its form or its query.
pub(crate) type Parameters = BTreeMap<String, String>;

/// A charge, captured or declined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// `pi_` and a UUIDv7: ordered by time.
    pub(crate) id: String,
    pub(crate) amount: i64,
    pub(crate) currency: String,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Why it was declined; captured when there is no reason.
    pub(crate) decline_code: Option<String>,
    pub(crate) refunds: Vec<Refund>,
    /// Unix time in seconds.
    pub(crate) created: i64,
}

/// A refund of an intent. Its status follows from the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refund {
    pub(crate) id: String,
    pub(crate) amount: i64,
    pub(crate) created: i64,
    /// Pending until then: Unix time in milliseconds.
    pub(crate) pending_until: i64,
    /// Ends as failed; the money stays with the merchant.
    pub(crate) fails: bool,
}

/// A response as it is kept, so that a retry with the same key gets it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredResponse {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// A request with an idempotency key, and its response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyedRequest {
    pub(crate) parameters: Parameters,
    pub(crate) response: StoredResponse,
    /// Unix time in seconds; the key is forgotten when it is too old.
    pub(crate) created: i64,
}

/// Money of one order in one currency, for audits. A refund that will fail is never part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Balance {
    pub(crate) order_id: String,
    /// ISO 4217, upper case.
    pub(crate) currency: String,
    /// In minor units.
    pub(crate) captured: i64,
    /// In minor units.
    pub(crate) refunded: i64,
    /// Number of captures; more than one is a double charge.
    pub(crate) captures: u32,
}

impl Intent {
    pub(crate) fn order_id(&self) -> &str {
        self.metadata.get("order_id").map_or("", String::as_str)
    }

    pub(crate) fn is_captured(&self) -> bool {
        self.decline_code.is_none()
    }

    /// What can still be refunded. A pending refund counts until it fails.
    pub(crate) fn refundable(&self, now: OffsetDateTime) -> i64 {
        let refunds = self.refunds.iter();
        let counted = refunds.filter(|refund| refund.status(now) != "failed");
        match self.is_captured() {
            true => self.amount - counted.map(|refund| refund.amount).sum::<i64>(),
            false => 0,
        }
    }

    /// As Stripe shows it: <https://docs.stripe.com/api/payment_intents/object>.
    pub(crate) fn body(&self) -> Value {
        let (status, received) = match self.is_captured() {
            true => ("succeeded", self.amount),
            false => ("requires_payment_method", 0),
        };
        let error = self.decline_code.as_deref().map(
            |code| json!({ "type": "card_error", "code": "card_declined", "decline_code": code }),
        );
        json!({
            "id": self.id,
            "object": "payment_intent",
            "amount": self.amount,
            "amount_received": received,
            "currency": self.currency,
            "status": status,
            "last_payment_error": error,
            "livemode": false,
            "latest_charge": format!("ch_{}", self.id.trim_start_matches("pi_")),
            "metadata": self.metadata,
            "created": self.created,
        })
    }
}

impl Refund {
    pub(crate) fn status(&self, now: OffsetDateTime) -> &'static str {
        match milliseconds(now) < self.pending_until {
            true => "pending",
            false if self.fails => "failed",
            false => "succeeded",
        }
    }

    /// As Stripe shows it: <https://docs.stripe.com/api/refunds/object>.
    pub(crate) fn body(&self, intent: &Intent, now: OffsetDateTime) -> Value {
        let status = self.status(now);
        let mut body = json!({
            "id": self.id,
            "object": "refund",
            "amount": self.amount,
            "currency": intent.currency,
            "status": status,
            "payment_intent": intent.id,
            "created": self.created,
        });
        if status == "failed" {
            body["failure_reason"] = json!("expired_or_canceled_card");
        }
        body
    }
}

pub(crate) fn milliseconds(at: OffsetDateTime) -> i64 {
    let milliseconds = at.unix_timestamp_nanos() / 1_000_000;
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}
