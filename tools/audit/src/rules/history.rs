//! Orders and their event logs.

use std::collections::BTreeMap;

use contracts::Subject;
use prost::Message as _;
use proto::{
    common::v1::OrderLine,
    order::v1::{CancelReason, OrderCancelled, OrderCreated},
};
use serde_json::Value;

use super::{Histories, invariant};
use crate::{
    Invariant,
    facts::{EventRow, Facts, OrderRow},
};

pub(super) fn terminal(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let mut breaches = Vec::new();
    for order in &facts.orders {
        let (id, status) = (order.order_id, &order.status);
        if !matches!(status.as_str(), "confirmed" | "cancelled") {
            breaches.push(format!("order {id} is {status}"));
        }
        let subjects: Vec<&str> = history(histories, order)
            .iter()
            .map(|event| event.subject.as_str())
            .collect();
        if !is_legal(&subjects) {
            let subjects = subjects.join(", ");
            breaches.push(format!("order {id} has an illegal history: {subjects}"));
        }
    }
    invariant(
        "terminal",
        "every order is confirmed or cancelled, by a legal path",
        facts.orders.len(),
        breaches,
    )
}

fn history<'a, 'b>(histories: &'b Histories<'a>, order: &OrderRow) -> &'b [&'a EventRow] {
    histories
        .get(&order.order_id)
        .map_or(&[], |history| history.as_slice())
}

/// An order is created first; then each event happens at most once, with no confirmation after a
/// cancellation, no `paid` after a confirmation, and no refund before a cancellation.
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

pub(super) fn log(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let mut breaches = Vec::new();
    for order in &facts.orders {
        let (id, row) = (order.order_id, FoldedOrder::from_row(order));
        match FoldedOrder::from_events(history(histories, order)) {
            Ok(folded) if folded == row => {}
            Ok(folded) => {
                breaches.push(format!(
                    "order {id}: folded {folded:?}, the table has {row:?}"
                ));
            }
            Err(error) => breaches.push(format!("order {id}: {error}")),
        }
    }
    let (in_log, in_table) = (histories.len(), facts.orders.len());
    if in_log != in_table {
        breaches.push(format!(
            "{in_log} orders in the log, {in_table} in the table"
        ));
    }
    invariant(
        "log",
        "folding the event log of an order gives its row",
        facts.events.len(),
        breaches,
    )
}

/// A line of an order.
#[derive(Debug, PartialEq)]
struct Line {
    quantity: i64,
    unit_price: (i64, String),
}

/// What both the row and the events of an order state.
#[derive(Debug, PartialEq)]
struct FoldedOrder {
    customer: String,
    status: String,
    reason: Option<String>,
    paid: bool,
    refunded: bool,
    /// By SKU.
    lines: BTreeMap<String, Line>,
    total: (i64, String),
    /// In microseconds since 1970.
    deadline: i64,
    version: i32,
}

impl FoldedOrder {
    fn from_row(order: &OrderRow) -> Self {
        Self {
            customer: order.customer_id.to_string(),
            status: order.status.clone(),
            reason: order.cancel_reason.clone(),
            paid: order.paid,
            refunded: order.refunded,
            lines: lines(&order.lines),
            total: (order.total_amount, order.total_currency.clone()),
            deadline: (order.deadline * 1e6).round() as i64,
            version: order.version,
        }
    }

    fn from_events(history: &[&EventRow]) -> Result<Self, String> {
        let (first, rest) = history.split_first().ok_or("it has no events")?;
        let mut folded = Self::from_created(first)?;
        folded.version = i32::try_from(history.len()).map_err(|error| error.to_string())?;
        for event in rest {
            folded.apply(event)?;
        }
        Ok(folded)
    }

    fn from_created(event: &EventRow) -> Result<Self, String> {
        let created =
            OrderCreated::decode(event.payload.as_slice()).map_err(|error| error.to_string())?;
        let total = created.total.ok_or("it was created without a total")?;
        let prices = created.lines.iter().map(|line| {
            let price = line.unit_price.as_ref().map_or(0, |price| price.amount);
            i64::from(line.quantity) * price
        });
        let (sum, total_amount) = (prices.sum::<i64>(), total.amount);
        if sum != total_amount {
            return Err(format!(
                "its lines add up to {sum}, its total is {total_amount}"
            ));
        }
        Ok(Self {
            customer: created.customer_id,
            status: "pending".to_owned(),
            reason: None,
            paid: false,
            refunded: false,
            lines: created.lines.into_iter().map(line).collect(),
            total: (total.amount, total.currency),
            deadline: created.deadline.map_or(0, |deadline| {
                deadline.seconds * 1_000_000 + i64::from(deadline.nanos) / 1000
            }),
            version: 1,
        })
    }

    fn apply(&mut self, event: &EventRow) -> Result<(), String> {
        let subject = event.subject.parse();
        match subject.map_err(|error: contracts::DecodeError| error.to_string())? {
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
                self.reason = Some(reason(event)?.to_owned());
                "cancelled".clone_into(&mut self.status);
            }
            Subject::OrderRefunded => {
                self.paid = true;
                self.refunded = true;
            }
            other => return Err(format!("{other} does not belong in its log")),
        }
        Ok(())
    }
}

/// The lines of a row.
fn lines(column: &Value) -> BTreeMap<String, Line> {
    let line = |line: &Value| {
        let price = &line["unit_price"];
        let currency = price["currency"].as_str()?.to_owned();
        let of_sku = Line {
            quantity: line["quantity"].as_i64()?,
            unit_price: (price["amount"].as_i64()?, currency),
        };
        Some((line["sku"].as_str()?.to_owned(), of_sku))
    };
    let lines = column.as_array().into_iter().flatten();
    lines.filter_map(line).collect()
}

/// A line of an event.
fn line(line: OrderLine) -> (String, Line) {
    let price = line.unit_price.unwrap_or_default();
    let of_sku = Line {
        quantity: line.quantity.into(),
        unit_price: (price.amount, price.currency),
    };
    (line.sku, of_sku)
}

fn reason(event: &EventRow) -> Result<&'static str, String> {
    let cancelled =
        OrderCancelled::decode(event.payload.as_slice()).map_err(|error| error.to_string())?;
    match cancelled.reason() {
        CancelReason::Unspecified => Err("it was cancelled without a reason".to_owned()),
        CancelReason::PaymentFailed => Ok("payment_failed"),
        CancelReason::OutOfStock => Ok("out_of_stock"),
        CancelReason::TimedOut => Ok("timed_out"),
        CancelReason::CustomerRequest => Ok("customer_request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(history: &str) -> bool {
        let subjects: Vec<String> = history
            .split_whitespace()
            .map(|event| format!("order.{event}.v1"))
            .collect();
        is_legal(&subjects.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn every_path_of_the_saga_is_legal() {
        for history in [
            "created",
            "created confirmed",
            "created paid confirmed",
            "created cancelled",
            "created cancelled paid refunded",
            "created paid confirmed cancelled refunded",
        ] {
            assert!(check(history), "{history}");
        }
    }

    #[test]
    fn repeated_missing_and_reordered_events_are_illegal() {
        for history in [
            "",
            "paid",
            "created created",
            "created paid paid",
            "created cancelled confirmed",
            "created confirmed paid",
            "created refunded",
            "created refunded cancelled",
        ] {
            assert!(!check(history), "{history}");
        }
    }
}
