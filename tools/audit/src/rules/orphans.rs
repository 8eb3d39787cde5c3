//! Nothing is about an order that does not exist, or for another customer than that of the order.

use std::collections::HashMap;

use uuid::Uuid;

use super::invariant;
use crate::{Invariant, facts::Facts};

pub(super) fn orphans(facts: &Facts) -> Invariant {
    let orders = facts.orders.iter();
    let orders: HashMap<Uuid, Uuid> = orders
        .map(|order| (order.order_id, order.customer_id))
        .collect();
    let payments = facts.payments.iter();
    let payments = payments.map(|row| ("payment", row.order_id, Some(row.customer_id)));
    let reservations = facts.reservations.iter();
    let reservations = reservations.map(|row| ("reservation", row.order_id, None));
    let notifications = facts.notifications.iter();
    let notifications =
        notifications.map(|row| ("notification", row.order_id, Some(row.customer_id)));
    let all = payments.chain(reservations).chain(notifications);
    let breaches = all.clone().filter_map(|(what, order, customer)| {
        let Some(of_order) = orders.get(&order) else {
            return Some(format!("{what} of an unknown order {order}"));
        };
        // The id of the order stands for a customer who was erased, here or there.
        let is_theirs = |customer| [order, *of_order].contains(&customer) || *of_order == order;
        let is_foreign = customer.is_some_and(|customer| !is_theirs(customer));
        is_foreign.then(|| format!("{what} of the order {order} for another customer"))
    });
    invariant(
        "orphans",
        "every payment, reservation and notification belongs to an order and its customer",
        all.clone().count(),
        breaches.collect(),
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
        let (customer, another) = (Uuid::from_u128(1), Uuid::from_u128(2));
        facts.notifications[0].customer_id = another;
        // The customer is erased at the order, and later at the notification only.
        assert!(orphans(&facts).breaches.is_empty());
        facts.orders[0].customer_id = customer;
        assert_eq!(orphans(&facts).breaches.len(), 1);
        facts.payments[0].customer_id = another;
        assert_eq!(orphans(&facts).breaches.len(), 2);
        facts.notifications[0].customer_id = customer;
        facts.payments[0].customer_id = customer;
        assert!(orphans(&facts).breaches.is_empty());
        facts.orders.clear();
        // A payment, a reservation and two notifications.
        assert_eq!(orphans(&facts).breaches.len(), 4);
    }
}
