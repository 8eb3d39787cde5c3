//! Charges and refunds: from parameters to a response and the records that belong to it.

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::ledger::{Intent, Ledger, Parameters, Record, Refund, StoredResponse};

/// A response, and the changes that must be durable before it is sent.
pub(crate) type Outcome = (StoredResponse, Vec<Record>);

pub(crate) fn token(parameters: &Parameters) -> &str {
    let given = parameters
        .get("payment_method_data[card][token]")
        .or_else(|| parameters.get("payment_method"));
    given.map_or("", String::as_str)
}

pub(crate) fn charge(parameters: &Parameters) -> Outcome {
    let get = |name: &str| parameters.get(name).map_or("", String::as_str);
    let amount = match get("amount").parse::<i64>() {
        Ok(amount) if amount > 0 => amount,
        _ => {
            let message = "This value must be greater than or equal to 1.";
            return invalid("amount", "parameter_invalid_integer", message);
        }
    };
    if get("currency").len() != 3 {
        let message = "Invalid currency: expected a three-letter ISO code.";
        return invalid("currency", "invalid_currency", message);
    }
    if get("confirm") != "true" {
        let message = "The sandbox only creates intents with confirm=true.";
        return invalid("confirm", "parameter_missing", message);
    }
    let token = token(parameters);
    let Some(card) = Card::from_token(token) else {
        let message = format!("No such token: '{token}'");
        let parameter = "payment_method_data[card][token]";
        return invalid(parameter, "resource_missing", &message);
    };
    let decline_code = match card {
        Card::Accepted => None,
        Card::Declined(code) => Some(code.to_owned()),
    };
    let intent = Intent {
        id: format!("pi_{}", Uuid::now_v7().simple()),
        amount,
        currency: get("currency").to_lowercase(),
        order_id: get("metadata[order_id]").to_owned(),
        captured: decline_code.is_none(),
        decline_code,
        refunded: 0,
        created: now(),
    };
    let response = match &intent.decline_code {
        None => success(intent.body()),
        Some(code) => declined(code, &intent),
    };
    (response, vec![Record::Intent(intent)])
}

pub(crate) fn refund(ledger: &Ledger, parameters: &Parameters) -> Outcome {
    let id = parameters.get("payment_intent").map_or("", String::as_str);
    let Some(intent) = ledger.intents.get(id) else {
        let message = format!("No such payment_intent: '{id}'");
        return invalid("payment_intent", "resource_missing", &message);
    };
    let left = match intent.captured {
        true => intent.amount - intent.refunded,
        false => 0,
    };
    let amount = match parameters.get("amount").map(|text| text.parse::<i64>()) {
        None => left,
        Some(Ok(amount)) => amount,
        Some(Err(_)) => return invalid("amount", "parameter_invalid_integer", "Invalid integer."),
    };
    if left == 0 {
        let message = "Nothing is left to refund.";
        return invalid("payment_intent", "charge_already_refunded", message);
    }
    if amount <= 0 || amount > left {
        let message = "Refund amount is greater than what is left.";
        return invalid("amount", "amount_too_large", message);
    }
    let refund = Refund {
        id: format!("re_{}", Uuid::now_v7().simple()),
        intent: id.to_owned(),
        amount,
        created: now(),
    };
    let response = success(refund.body(&intent.currency));
    let intent = Intent {
        refunded: intent.refunded + amount,
        ..intent.clone()
    };
    (
        response,
        vec![Record::Intent(intent), Record::Refund(refund)],
    )
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

fn success(body: serde_json::Value) -> StoredResponse {
    StoredResponse { status: 200, body }
}

fn declined(code: &str, intent: &Intent) -> StoredResponse {
    let body = json!({ "error": {
        "type": "card_error",
        "code": "card_declined",
        "decline_code": code,
        "message": "Your card was declined.",
        "payment_intent": intent.body(),
    }});
    StoredResponse { status: 402, body }
}

fn invalid(parameter: &str, code: &str, message: &str) -> Outcome {
    let body = json!({ "error": {
        "type": "invalid_request_error",
        "code": code,
        "param": parameter,
        "message": message,
    }});
    (StoredResponse { status: 400, body }, Vec::new())
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}
