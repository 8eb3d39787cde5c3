//! The invariants, each a pure function of the facts.

mod history;
mod messages;
mod money;
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
        stock::stock(facts),
        messages::messages(facts, expectations),
        messages::customer(facts, &histories),
    ]
}

/// Quantity by SKU, from the JSON that orders and reservations keep.
fn quantities(lines: &Value) -> BTreeMap<String, i64> {
    let line = |line: &Value| Some((line["sku"].as_str()?.to_owned(), line["quantity"].as_i64()?));
    let lines = lines.as_array().into_iter().flatten();
    lines.filter_map(line).collect()
}
