//! Stock, reservations and orders.

use std::collections::HashMap;

use uuid::Uuid;

use super::{invariant, quantities};
use crate::{
    Invariant,
    facts::{Facts, ReservationRow},
};

pub(super) fn stock(facts: &Facts) -> Invariant {
    // Released and rejected reservations hold nothing.
    let holding: HashMap<Uuid, &ReservationRow> = facts
        .reservations
        .iter()
        .filter(|reservation| reservation.status == "reserved")
        .map(|reservation| (reservation.order_id, reservation))
        .collect();
    let mut breaches = shelves(facts, &holding);
    for order in &facts.orders {
        let id = order.order_id;
        match (order.status.as_str(), holding.get(&id)) {
            ("confirmed", None) => {
                breaches.push(format!("order {id} is confirmed without a reservation"));
            }
            ("confirmed", Some(held)) if quantities(&held.lines) != quantities(&order.lines) => {
                breaches.push(format!(
                    "order {id} and its reservation have different lines"
                ));
            }
            ("cancelled", Some(_)) => {
                breaches.push(format!("order {id} is cancelled and still holds stock"));
            }
            _ => {}
        }
    }
    invariant(
        "stock",
        "initial = on hand + reserved; exactly the confirmed orders have a reservation",
        facts.stock.len() + facts.reservations.len(),
        breaches,
    )
}

/// Compares each product's stock with the reservations of it.
fn shelves(facts: &Facts, holding: &HashMap<Uuid, &ReservationRow>) -> Vec<String> {
    let mut reserved: HashMap<String, i64> = HashMap::new();
    for reservation in holding.values() {
        for (sku, quantity) in quantities(&reservation.lines) {
            *reserved.entry(sku).or_default() += quantity;
        }
    }
    let mut breaches = Vec::new();
    for row in &facts.stock {
        let expected = reserved.remove(&row.sku).unwrap_or_default();
        let balanced = row.initial == row.on_hand + row.reserved && row.reserved == expected;
        if !balanced || row.on_hand < 0 || row.reserved < 0 {
            breaches.push(format!(
                "{}: initial {}, on hand {}, reserved {}, in reservations {expected}",
                row.sku, row.initial, row.on_hand, row.reserved
            ));
        }
    }
    let unknown = reserved.into_keys();
    breaches.extend(unknown.map(|sku| format!("{sku} is reserved and is not in stock")));
    breaches
}
