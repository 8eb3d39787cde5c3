//! What the provider knows: intents, refunds, and the answers it has given, by idempotency key.
//! Pure: every change is returned as records, which the journal makes durable before anybody is
//! answered.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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

/// An answer, kept so that a repeated request gets the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// A stored answer and the parameters that it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keyed {
    pub(crate) parameters: BTreeMap<String, String>,
    /// `None` while the first request is being worked on.
    pub(crate) answer: Option<Answer>,
}

/// A change to be made durable.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    Intent(Intent),
    Refund(Refund),
    Key(String, Keyed),
}

/// Money of one order in one currency, for audits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The order's id, from the intent's metadata.
    pub order_id: String,
    /// ISO 4217, upper case.
    pub currency: String,
    /// Captured, in minor units.
    pub captured: i64,
    /// Given back, in minor units.
    pub refunded: i64,
    /// How many captures; more than one is a breach.
    pub captures: u32,
}

/// The provider's memory.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) intents: HashMap<String, Intent>,
    pub(crate) refunds: HashMap<String, Refund>,
    pub(crate) keys: HashMap<String, Keyed>,
}

/// What to do with a request that has an idempotency key.
pub(crate) enum Admission {
    New,
    Replay(Answer),
    InFlight,
    OtherParameters,
}

impl Ledger {
    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            Record::Intent(intent) => drop(self.intents.insert(intent.id.clone(), intent)),
            Record::Refund(refund) => drop(self.refunds.insert(refund.id.clone(), refund)),
            Record::Key(key, keyed) => drop(self.keys.insert(key, keyed)),
        }
    }

    /// Checks an idempotency key and, when it is new, marks it as being worked on.
    pub(crate) fn admit(&mut self, key: &str, parameters: &BTreeMap<String, String>) -> Admission {
        match self.keys.get(key) {
            Some(keyed) if keyed.parameters != *parameters => Admission::OtherParameters,
            Some(Keyed {
                answer: Some(answer),
                ..
            }) => Admission::Replay(answer.clone()),
            Some(Keyed { answer: None, .. }) => Admission::InFlight,
            None => {
                let keyed = Keyed {
                    parameters: parameters.clone(),
                    answer: None,
                };
                self.keys.insert(key.to_owned(), keyed);
                Admission::New
            }
        }
    }

    /// Forgets a key whose request came to nothing.
    pub(crate) fn abandon(&mut self, key: &str) {
        if self
            .keys
            .get(key)
            .is_some_and(|keyed| keyed.answer.is_none())
        {
            self.keys.remove(key);
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
    pub(crate) fn body(&self) -> Value {
        let status = if self.captured {
            "succeeded"
        } else {
            "requires_payment_method"
        };
        json!({
            "id": self.id, "object": "payment_intent", "amount": self.amount, "currency": self.currency,
            "amount_received": if self.captured { self.amount } else { 0 }, "status": status, "livemode": false,
            "latest_charge": format!("ch_{}", self.id.trim_start_matches("pi_")),
            "metadata": { "order_id": self.order_id }, "created": self.created,
        })
    }
}

impl Refund {
    pub(crate) fn body(&self, currency: &str) -> Value {
        json!({
            "id": self.id, "object": "refund", "amount": self.amount, "currency": currency, "status": "succeeded",
            "payment_intent": self.intent, "created": self.created,
        })
    }
}
