//! Nothing is about an order that does not exist.

use std::collections::HashSet;

use uuid::Uuid;

use super::invariant;
use crate::{Invariant, facts::Facts};

pub(super) fn orphans(facts: &Facts) -> Invariant {
    let orders: HashSet<Uuid> = facts.orders.iter().map(|order| order.order_id).collect();
    let payments = facts.payments.iter().map(|row| ("payment", row.order_id));
    let reservations = facts.reservations.iter();
    let reservations = reservations.map(|row| ("reservation", row.order_id));
    let notifications = facts.notifications.iter();
    let notifications = notifications.map(|row| ("notification", row.order_id));
    let all = payments.chain(reservations).chain(notifications);
    let breaches = all
        .clone()
        .filter(|(_, order)| !orders.contains(order))
        .map(|(what, order)| format!("{what} of an unknown order {order}"))
        .collect();
    invariant(
        "orphans",
        "every payment, reservation and notification belongs to an order",
        all.count(),
        breaches,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{facts::ReservationRow, rules::fixture};

    #[test]
    fn what_belongs_to_an_order_holds_and_what_belongs_to_none_is_a_breach() {
        let mut facts = fixture::refunded();
        facts.reservations.push(ReservationRow {
            order_id: Uuid::nil(),
            status: "released".to_owned(),
            lines: json!([]),
        });
        assert!(orphans(&facts).breaches.is_empty());
        facts.orders.clear();
        // A payment, a reservation and two notifications.
        assert_eq!(orphans(&facts).breaches.len(), 4);
    }
}
