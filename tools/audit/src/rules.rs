//! The invariants, each a pure function of the facts.

mod charges;
mod customer;
mod delivery;
mod history;
mod messages;
mod money;
mod orphans;
mod refunds;
mod stock;

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use uuid::Uuid;

use crate::{
    Expectations, Invariant,
    facts::{EventRow, Facts},
};

/// The event log of each order, oldest event first.
type Histories<'a> = HashMap<Uuid, Vec<&'a EventRow>>;

pub(super) fn check(facts: &Facts, expectations: &Expectations) -> Vec<Invariant> {
    let mut histories = Histories::new();
    for event in &facts.events {
        histories.entry(event.order_id).or_default().push(event);
    }
    vec![
        history::terminal(facts, &histories),
        history::log(facts, &histories),
        money::money(facts),
        charges::charges(facts, &histories),
        refunds::refunds(facts),
        stock::stock(facts),
        orphans::orphans(facts),
        messages::messages(facts, expectations),
        delivery::delivery(facts, expectations),
        customer::customer(facts, &histories),
        customer::mails(facts),
    ]
}

/// An invariant without notes.
fn invariant(
    name: &'static str,
    rule: &'static str,
    checked: usize,
    breaches: Vec<String>,
) -> Invariant {
    Invariant {
        name,
        rule,
        checked,
        breaches,
        notes: Vec::new(),
    }
}

/// Quantity by SKU, from the JSON that orders and reservations keep.
fn quantities(lines: &Value) -> BTreeMap<String, i64> {
    let line = |line: &Value| Some((line["sku"].as_str()?.to_owned(), line["quantity"].as_i64()?));
    let lines = lines.as_array().into_iter().flatten();
    lines.filter_map(line).collect()
}

/// Facts for the tests of the rules: one order, named by the nil id.
#[cfg(test)]
mod fixture {
    use contracts::{EventId, Subject};
    use uuid::Uuid;

    use crate::facts::{EventRow, Facts, NotificationRow, OrderRow, PaymentRow};

    pub(super) fn order(status: &str) -> OrderRow {
        OrderRow {
            order_id: Uuid::nil(),
            customer_id: Uuid::nil(),
            status: status.to_owned(),
            cancel_reason: None,
            paid: true,
            refunded: false,
            lines: serde_json::json!([]),
            total_amount: 500,
            total_currency: "EUR".to_owned(),
            version: 1,
            deadline: 60.0,
        }
    }

    pub(super) fn event(subject: Subject) -> EventRow {
        EventRow {
            event_id: EventId::new().0,
            order_id: Uuid::nil(),
            subject: subject.to_string(),
            payload: Vec::new(),
        }
    }

    pub(super) fn notification(kind: &str) -> NotificationRow {
        NotificationRow {
            order_id: Uuid::nil(),
            customer_id: Uuid::nil(),
            kind: kind.to_owned(),
            is_mail_due: false,
            is_mail_given_up: false,
            mail_attempts: 0,
        }
    }

    /// An order that was charged, cancelled and refunded, and whose customer knows.
    pub(super) fn refunded() -> Facts {
        Facts {
            orders: vec![OrderRow {
                refunded: true,
                ..order("cancelled")
            }],
            events: vec![
                event(Subject::OrderCreated),
                event(Subject::OrderCancelled),
                event(Subject::OrderRefunded),
            ],
            payments: vec![PaymentRow {
                order_id: Uuid::nil(),
                customer_id: Uuid::nil(),
                status: "refunded".to_owned(),
                amount: Some(500),
                currency: Some("EUR".to_owned()),
                reference: None,
            }],
            notifications: vec![
                notification("order_cancelled"),
                notification("payment_refunded"),
            ],
            ..Facts::default()
        }
    }
}
