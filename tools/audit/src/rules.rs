//! The invariants (blueprint, section 5), each a pure function of the facts.

use std::collections::{BTreeMap, HashMap};

use contracts::Subject;
use prost::Message as _;
use proto::order::v1::{CancelReason, OrderCancelled, OrderCreated};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    Expectations, Invariant,
    facts::{Facts, Order, Recorded},
};

pub(super) fn check(facts: &Facts, expectations: &Expectations) -> Vec<Invariant> {
    let mut histories: HashMap<Uuid, Vec<&Recorded>> = HashMap::new();
    for event in &facts.events {
        histories.entry(event.order_id).or_default().push(event);
    }
    vec![
        terminal(facts, &histories),
        log(facts, &histories),
        money(facts),
        stock(facts),
        messages(facts, expectations),
        customer(facts, &histories),
    ]
}

type Histories<'a> = HashMap<Uuid, Vec<&'a Recorded>>;

fn terminal(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let mut breaches = Vec::new();
    for order in &facts.orders {
        if !matches!(order.status.as_str(), "confirmed" | "cancelled") {
            breaches.push(format!("order {} is {}", order.order_id, order.status));
        }
        let history = histories
            .get(&order.order_id)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let subjects: Vec<&str> = history.iter().map(|event| event.subject.as_str()).collect();
        if !is_legal(&subjects) {
            breaches.push(format!(
                "order {} has an illegal history: {}",
                order.order_id,
                subjects.join(", ")
            ));
        }
    }
    let rule = "every order ended confirmed or cancelled, by a legal path";
    Invariant {
        name: "terminal",
        rule,
        checked: facts.orders.len(),
        breaches,
    }
}

/// Created first; then each fact at most once, no confirmation after a cancellation, no payment
/// noted after a confirmation, no refund before a cancellation.
fn is_legal(subjects: &[&str]) -> bool {
    let at = |subject: Subject| subjects.iter().position(|found| *found == subject.as_str());
    let once = |found: &&str| subjects.iter().filter(|other| *other == found).count() == 1;
    let before = |a: Option<usize>, b: Option<usize>| a.zip(b).is_none_or(|(a, b)| a < b);
    let (paid, confirmed) = (at(Subject::OrderPaid), at(Subject::OrderConfirmed));
    let (cancelled, refunded) = (at(Subject::OrderCancelled), at(Subject::OrderRefunded));
    at(Subject::OrderCreated) == Some(0)
        && subjects.iter().all(once)
        && before(paid, confirmed)
        && before(confirmed, cancelled)
        && refunded.is_none_or(|refunded| cancelled.is_some_and(|cancelled| cancelled < refunded))
}

fn log(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let mut breaches = Vec::new();
    for order in &facts.orders {
        let history = histories
            .get(&order.order_id)
            .map(Vec::as_slice)
            .unwrap_or_default();
        match Folded::from(history) {
            Ok(folded) if folded == Folded::of(order) => {}
            Ok(folded) => breaches.push(format!(
                "order {}: the log says {folded:?}, the table {:?}",
                order.order_id,
                Folded::of(order)
            )),
            Err(error) => breaches.push(format!("order {}: {error}", order.order_id)),
        }
    }
    if histories.len() != facts.orders.len() {
        breaches.push(format!(
            "{} orders in the log, {} in the table",
            histories.len(),
            facts.orders.len()
        ));
    }
    let rule = "folding an order's event log gives its row";
    Invariant {
        name: "log",
        rule,
        checked: facts.events.len(),
        breaches,
    }
}

/// An order as its events tell it.
#[derive(Debug, PartialEq)]
struct Folded {
    customer: String,
    status: String,
    reason: Option<String>,
    paid: bool,
    refunded: bool,
    lines: BTreeMap<String, i64>,
    total: (i64, String),
    version: i32,
}

impl Folded {
    fn of(order: &Order) -> Self {
        Self {
            customer: order.customer_id.to_string(),
            status: order.status.clone(),
            reason: order.cancel_reason.clone(),
            paid: order.paid,
            refunded: order.refunded,
            lines: lines(&order.lines),
            total: (order.total_amount, order.total_currency.clone()),
            version: order.version,
        }
    }

    fn from(history: &[&Recorded]) -> Result<Self, String> {
        let first = history.first().ok_or("it has no events")?;
        let created =
            OrderCreated::decode(first.payload.as_slice()).map_err(|error| error.to_string())?;
        let total = created.total.ok_or("it was created without a total")?;
        let sum: i64 = created
            .lines
            .iter()
            .map(|line| {
                i64::from(line.quantity) * line.unit_price.as_ref().map_or(0, |price| price.amount)
            })
            .sum();
        if sum != total.amount {
            return Err(format!(
                "its lines sum up to {sum}, its total is {}",
                total.amount
            ));
        }
        let mut folded = Self {
            customer: created.customer_id,
            status: "pending".to_owned(),
            reason: None,
            paid: false,
            refunded: false,
            lines: created
                .lines
                .into_iter()
                .map(|line| (line.sku, i64::from(line.quantity)))
                .collect(),
            total: (total.amount, total.currency),
            version: i32::try_from(history.len()).map_err(|error| error.to_string())?,
        };
        for event in &history[1..] {
            folded.apply(event)?;
        }
        Ok(folded)
    }

    fn apply(&mut self, event: &Recorded) -> Result<(), String> {
        match event
            .subject
            .parse()
            .map_err(|error: contracts::DecodeError| error.to_string())?
        {
            Subject::OrderPaid => {
                self.paid = true;
                if self.status == "pending" {
                    "paid".clone_into(&mut self.status);
                }
            }
            Subject::OrderConfirmed => {
                self.paid = true;
                "confirmed".clone_into(&mut self.status);
            }
            Subject::OrderCancelled => {
                let cancelled = OrderCancelled::decode(event.payload.as_slice())
                    .map_err(|error| error.to_string())?;
                let reason = match cancelled.reason() {
                    CancelReason::Unspecified => {
                        return Err("it was cancelled without a reason".to_owned());
                    }
                    CancelReason::PaymentFailed => "payment_failed",
                    CancelReason::OutOfStock => "out_of_stock",
                    CancelReason::TimedOut => "timed_out",
                    CancelReason::CustomerRequest => "customer_request",
                };
                self.reason = Some(reason.to_owned());
                "cancelled".clone_into(&mut self.status);
            }
            Subject::OrderRefunded => {
                self.paid = true;
                self.refunded = true;
            }
            other => return Err(format!("{other} does not belong into its log")),
        }
        Ok(())
    }
}

fn lines(json: &Value) -> BTreeMap<String, i64> {
    let line = |line: &Value| Some((line["sku"].as_str()?.to_owned(), line["quantity"].as_i64()?));
    json.as_array()
        .into_iter()
        .flatten()
        .filter_map(line)
        .collect()
}

fn money(facts: &Facts) -> Invariant {
    let mut breaches = Vec::new();
    let mut known = HashMap::new();
    for order in &facts.orders {
        let id = order.order_id;
        known.insert(id.to_string(), ());
        let owed = if order.status == "confirmed" {
            order.total_amount
        } else {
            0
        };
        let (mut kept, mut captures) = (0, 0);
        for balance in facts.balances.get(&id.to_string()).into_iter().flatten() {
            kept += balance.captured - balance.refunded;
            captures += balance.captures;
            if balance.currency != order.total_currency || balance.captured != order.total_amount {
                breaches.push(format!(
                    "order {id} over {} {} was charged {} {}",
                    order.total_amount, order.total_currency, balance.captured, balance.currency
                ));
            }
        }
        if kept != owed {
            breaches.push(format!(
                "order {id} is {}: the provider keeps {kept}, owed are {owed}",
                order.status
            ));
        }
        if captures > 1 {
            breaches.push(format!("order {id} was captured {captures} times"));
        }
        let booked = facts
            .payments
            .get(&id)
            .filter(|payment| payment.status == "completed");
        let booked = booked.map_or(0, |payment| payment.amount.unwrap_or_default());
        if booked != kept {
            breaches.push(format!(
                "order {id}: the payment database has {booked}, the provider keeps {kept}"
            ));
        }
        let currency = facts
            .payments
            .get(&id)
            .and_then(|payment| payment.currency.as_ref());
        if currency.is_some_and(|currency| *currency != order.total_currency) {
            breaches.push(format!("order {id}: the payment is in another currency"));
        }
    }
    for order in facts
        .balances
        .keys()
        .filter(|order| !known.contains_key(*order))
    {
        breaches.push(format!(
            "the provider charged for an order that does not exist: {order}"
        ));
    }
    let rule =
        "captured - refunded = confirmed, at the provider and in the books; never two captures";
    Invariant {
        name: "money",
        rule,
        checked: facts.orders.len(),
        breaches,
    }
}

fn stock(facts: &Facts) -> Invariant {
    let mut breaches = Vec::new();
    let mut reserved: HashMap<String, i64> = HashMap::new();
    for reservation in facts
        .reservations
        .values()
        .filter(|reservation| reservation.status == "reserved")
    {
        for (sku, quantity) in lines(&reservation.lines) {
            *reserved.entry(sku).or_default() += quantity;
        }
    }
    for stock in &facts.stock {
        let should = reserved.remove(&stock.sku).unwrap_or_default();
        let right = stock.initial == stock.on_hand + stock.reserved && stock.reserved == should;
        if !right || stock.on_hand < 0 || stock.reserved < 0 {
            breaches.push(format!(
                "{}: initial {}, on hand {}, reserved {}, reservations {should}",
                stock.sku, stock.initial, stock.on_hand, stock.reserved
            ));
        }
    }
    breaches.extend(
        reserved
            .keys()
            .map(|sku| format!("{sku} is reserved and has no stock")),
    );
    for order in &facts.orders {
        let reservation = facts.reservations.get(&order.order_id);
        let live = reservation.filter(|reservation| reservation.status == "reserved");
        match (order.status.as_str(), live) {
            ("confirmed", None) => breaches.push(format!(
                "order {} is confirmed and has no stock",
                order.order_id
            )),
            ("confirmed", Some(live)) if lines(&live.lines) != lines(&order.lines) => {
                breaches.push(format!(
                    "order {} has other lines than its reservation",
                    order.order_id
                ));
            }
            ("cancelled", Some(_)) => breaches.push(format!(
                "order {} is cancelled and holds stock",
                order.order_id
            )),
            _ => {}
        }
    }
    let rule = "initial = on hand + reserved; one reservation per confirmed order, none for a cancelled one";
    Invariant {
        name: "stock",
        rule,
        checked: facts.stock.len() + facts.reservations.len(),
        breaches,
    }
}

fn messages(facts: &Facts, expectations: &Expectations) -> Invariant {
    let mut breaches = Vec::new();
    let mut checked = 0;
    for (service, outbox) in &facts.outboxes {
        let empty = HashMap::new();
        let stream = facts.streams.get(service).unwrap_or(&empty);
        let mut strangers = stream.clone();
        for row in outbox {
            checked += 1;
            let times = strangers.remove(&row.event_id).unwrap_or_default();
            if !row.sent || (times != expectations.copies && row.kept) {
                breaches.push(format!(
                    "{} {} of {service}: sent {}, {times} times in the stream",
                    row.subject, row.event_id, row.sent
                ));
            }
        }
        breaches.extend(
            strangers
                .keys()
                .map(|id| format!("{id} is in the stream of {service}, not in its outbox")),
        );
    }
    if facts.dead_letters.len() != expectations.dead_letters {
        breaches.push(format!(
            "{} dead letters, expected {}",
            facts.dead_letters.len(),
            expectations.dead_letters
        ));
        breaches.extend(facts.dead_letters.iter().take(3).cloned());
    }
    let rule = "every outbox row is in its stream exactly once; no dead letters";
    Invariant {
        name: "messages",
        rule,
        checked,
        breaches,
    }
}

fn customer(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let mut told: HashMap<(Uuid, &str), usize> = HashMap::new();
    for (order, kind) in &facts.notifications {
        *told.entry((*order, kind)).or_default() += 1;
    }
    let mut breaches = Vec::new();
    for order in &facts.orders {
        let happened = |subject: Subject| {
            let history = histories.get(&order.order_id).into_iter().flatten();
            usize::from(
                history
                    .clone()
                    .any(|event| event.subject == subject.as_str()),
            )
        };
        for (kind, expected) in [
            ("order_confirmed", happened(Subject::OrderConfirmed)),
            ("order_cancelled", happened(Subject::OrderCancelled)),
            ("payment_refunded", happened(Subject::OrderRefunded)),
        ] {
            let times = told.remove(&(order.order_id, kind)).unwrap_or_default();
            if times != expected {
                breaches.push(format!(
                    "order {}: told {kind} {times} times, expected {expected}",
                    order.order_id
                ));
            }
        }
    }
    breaches.extend(
        told.keys()
            .map(|(order, kind)| format!("told {kind} about an unknown order {order}")),
    );
    let rule = "exactly one notification of each kind per order";
    Invariant {
        name: "customer",
        rule,
        checked: facts.notifications.len(),
        breaches,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_legal_histories_are_legal() {
        let legal = [
            "created paid confirmed",
            "created confirmed",
            "created cancelled",
            "created cancelled paid refunded",
            "created paid confirmed cancelled refunded",
            "created",
        ];
        let illegal = [
            "",
            "paid",
            "created created",
            "created cancelled confirmed",
            "created confirmed paid",
            "created refunded",
            "created refunded cancelled",
            "created paid paid",
        ];
        let check = |history: &str| {
            let subjects: Vec<String> = history
                .split_whitespace()
                .map(|fact| format!("order.{fact}.v1"))
                .collect();
            is_legal(&subjects.iter().map(String::as_str).collect::<Vec<_>>())
        };
        assert!(legal.iter().all(|history| check(history)));
        for history in illegal {
            assert!(!check(history), "{history}");
        }
    }
}
