//! Charges and refunds: from parameters to a response and what it leaves in the ledger. Pure.

use std::collections::BTreeMap;

use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    faults::Fault,
    ledger::{Intent, Parameters, Refund, StoredResponse, milliseconds},
};

pub(crate) fn token(parameters: &Parameters) -> &str {
    let given = parameters
        .get("payment_method_data[card][token]")
        .or_else(|| parameters.get("payment_method"));
    given.map_or("", String::as_str)
}

/// The intent that a request asks for; an error response when it is invalid.
pub(crate) fn charge(parameters: &Parameters) -> Result<Intent, StoredResponse> {
    let get = |name: &str| parameters.get(name).map_or("", String::as_str);
    let amount = match get("amount").parse::<i64>() {
        Ok(amount) if amount > 0 => amount,
        _ => {
            let message = "This value must be greater than or equal to 1.";
            return Err(invalid("amount", "parameter_invalid_integer", message));
        }
    };
    if get("currency").len() != 3 {
        let message = "Invalid currency: expected a three-letter ISO code.";
        return Err(invalid("currency", "invalid_currency", message));
    }
    if get("confirm") != "true" {
        let message = "The sandbox only creates intents with confirm=true.";
        return Err(invalid("confirm", "parameter_missing", message));
    }
    let token = token(parameters);
    let Some(card) = Card::from_token(token) else {
        let message = format!("No such token: '{token}'");
        let parameter = "payment_method_data[card][token]";
        return Err(invalid(parameter, "resource_missing", &message));
    };
    // The id and `created` are of the same time: lists select by the id.
    let id = Uuid::now_v7();
    let created = id.get_timestamp().map(|created| created.to_unix().0);
    Ok(Intent {
        id: format!("pi_{}", id.simple()),
        amount,
        currency: get("currency").to_lowercase(),
        metadata: metadata(parameters),
        decline_code: match card {
            Card::Accepted => None,
            Card::Declined(code) => Some(code.to_owned()),
        },
        refunds: Vec::new(),
        created: created.unwrap_or_default().cast_signed(),
    })
}

fn metadata(parameters: &Parameters) -> BTreeMap<String, String> {
    let entries = parameters.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("metadata[")?.strip_suffix(']')?;
        Some((name.to_owned(), value.clone()))
    });
    entries.collect()
}

/// The response to a charge that was executed.
pub(crate) fn charged(intent: &Intent) -> StoredResponse {
    let Some(code) = &intent.decline_code else {
        return success(intent.body());
    };
    let body = json!({ "error": {
        "type": "card_error",
        "code": "card_declined",
        "decline_code": code,
        "message": "Your card was declined.",
        "payment_intent": intent.body(),
    }});
    StoredResponse { status: 402, body }
}

/// The refund of an intent that a request asks for; an error response when it is impossible.
pub(crate) fn refund(
    intent: Option<&Intent>,
    parameters: &Parameters,
    fault: &Fault,
    now: OffsetDateTime,
) -> Result<Refund, StoredResponse> {
    let Some(intent) = intent else {
        let id = parameters.get("payment_intent").map_or("", String::as_str);
        let message = format!("No such payment_intent: '{id}'");
        return Err(invalid("payment_intent", "resource_missing", &message));
    };
    let left = intent.refundable(now);
    let amount = match parameters.get("amount").map(|text| text.parse::<i64>()) {
        None => left,
        Some(Ok(amount)) => amount,
        Some(Err(_)) => {
            let message = "Invalid integer.";
            return Err(invalid("amount", "parameter_invalid_integer", message));
        }
    };
    if left == 0 {
        let message = "Nothing is left to refund.";
        return Err(invalid(
            "payment_intent",
            "charge_already_refunded",
            message,
        ));
    }
    if amount <= 0 || amount > left {
        let message = "Refund amount is greater than what is left.";
        return Err(invalid("amount", "amount_too_large", message));
    }
    let pending = Duration::try_from(fault.refund_pending()).unwrap_or(Duration::MAX);
    Ok(Refund {
        id: format!("re_{}", Uuid::now_v7().simple()),
        amount,
        created: now.unix_timestamp(),
        pending_until: milliseconds(now.checked_add(pending).unwrap_or(now)),
        fails: fault.refund_fails(),
    })
}

enum Card {
    Accepted,
    /// With Stripe's decline code.
    Declined(&'static str),
}

impl Card {
    /// Stripe's test tokens: <https://docs.stripe.com/testing>.
    fn from_token(token: &str) -> Option<Self> {
        match token {
            "tok_visa" | "tok_mastercard" | "pm_card_visa" | "pm_card_mastercard" => {
                Some(Self::Accepted)
            }
            "tok_chargeDeclined" | "tok_visa_chargeDeclined" => {
                Some(Self::Declined("generic_decline"))
            }
            "tok_chargeDeclinedInsufficientFunds" | "tok_visa_chargeDeclinedInsufficientFunds" => {
                Some(Self::Declined("insufficient_funds"))
            }
            _ => None,
        }
    }
}

pub(crate) fn success(body: serde_json::Value) -> StoredResponse {
    StoredResponse { status: 200, body }
}

fn invalid(parameter: &str, code: &str, message: &str) -> StoredResponse {
    let body = json!({ "error": {
        "type": "invalid_request_error",
        "code": code,
        "param": parameter,
        "message": message,
    }});
    StoredResponse { status: 400, body }
}
