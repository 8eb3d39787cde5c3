//! What the provider knows: intents, refunds, and its responses by idempotency key. Pure: changes
//! are records, which the journal makes durable before a response is sent.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The parameters of a request, from its form.
pub(crate) type Parameters = BTreeMap<String, String>;

/// A charge, captured or declined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) id: String,
    pub(crate) amount: i64,
    pub(crate) currency: String,
    pub(crate) order_id: String,
    pub(crate) captured: bool,
    pub(crate) decline_code: Option<String>,
    pub(crate) refunded: i64,
    pub(crate) created: i64,
}

/// A refund of an intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refund {
    pub(crate) id: String,
    pub(crate) intent: String,
    pub(crate) amount: i64,
    pub(crate) created: i64,
}

/// A response as it is kept, so that a retry with the same key gets it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredResponse {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// A request with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyedRequest {
    pub(crate) parameters: Parameters,
    /// `None` while the request is in flight.
    pub(crate) response: Option<StoredResponse>,
}

/// A change to be made durable.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Intent(Intent),
    Refund(Refund),
    /// A request under its idempotency key.
    Request(String, KeyedRequest),
}

/// Money of one order in one currency, for audits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Balance {
    order_id: String,
    /// ISO 4217, upper case.
    currency: String,
    /// In minor units.
    captured: i64,
    /// In minor units.
    refunded: i64,
    /// Number of captures; more than one is a double charge.
    captures: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) intents: HashMap<String, Intent>,
    pub(crate) refunds: HashMap<String, Refund>,
    requests: HashMap<String, KeyedRequest>,
}

/// What to do with a request that has an idempotency key.
pub(crate) enum Admission {
    New,
    Replay(StoredResponse),
    InFlight,
    OtherParameters,
}

impl Ledger {
    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            Record::Intent(intent) => drop(self.intents.insert(intent.id.clone(), intent)),
            Record::Refund(refund) => drop(self.refunds.insert(refund.id.clone(), refund)),
            Record::Request(key, request) => drop(self.requests.insert(key, request)),
        }
    }

    /// Looks up an idempotency key. A new key is in flight afterwards.
    pub(crate) fn admit(&mut self, key: &str, parameters: &Parameters) -> Admission {
        match self.requests.get(key) {
            Some(request) if request.parameters != *parameters => Admission::OtherParameters,
            Some(request) => match &request.response {
                Some(response) => Admission::Replay(response.clone()),
                None => Admission::InFlight,
            },
            None => {
                let request = KeyedRequest {
                    parameters: parameters.clone(),
                    response: None,
                };
                self.requests.insert(key.to_owned(), request);
                Admission::New
            }
        }
    }

    /// Forgets a key whose request failed before it had a response.
    pub(crate) fn abandon(&mut self, key: &str) {
        if let Some(request) = self.requests.get(key)
            && request.response.is_none()
        {
            self.requests.remove(key);
        }
    }

    /// Money by order and currency, in no particular order.
    pub(crate) fn balances(&self) -> Vec<Balance> {
        let mut balances: HashMap<(&str, &str), Balance> = HashMap::new();
        for intent in self.intents.values().filter(|intent| intent.captured) {
            let balance = balances
                .entry((&intent.order_id, &intent.currency))
                .or_insert_with(|| Balance {
                    order_id: intent.order_id.clone(),
                    currency: intent.currency.to_uppercase(),
                    ..Balance::default()
                });
            balance.captured += intent.amount;
            balance.refunded += intent.refunded;
            balance.captures += 1;
        }
        balances.into_values().collect()
    }
}

impl Intent {
    /// As Stripe shows it: <https://docs.stripe.com/api/payment_intents/object>.
    pub(crate) fn body(&self) -> Value {
        let (status, received) = match self.captured {
            true => ("succeeded", self.amount),
            false => ("requires_payment_method", 0),
        };
        json!({
            "id": self.id,
            "object": "payment_intent",
            "amount": self.amount,
            "amount_received": received,
            "currency": self.currency,
            "status": status,
            "livemode": false,
            "latest_charge": format!("ch_{}", self.id.trim_start_matches("pi_")),
            "metadata": { "order_id": self.order_id },
            "created": self.created,
        })
    }
}

impl Refund {
    /// As Stripe shows it: <https://docs.stripe.com/api/refunds/object>.
    pub(crate) fn body(&self, currency: &str) -> Value {
        json!({
            "id": self.id,
            "object": "refund",
            "amount": self.amount,
            "currency": currency,
            "status": "succeeded",
            "payment_intent": self.intent,
            "created": self.created,
        })
    }
}
