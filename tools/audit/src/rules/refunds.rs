//! A refund is known everywhere or nowhere.

use std::collections::HashSet;

use uuid::Uuid;

use super::invariant;
use crate::{Invariant, facts::Facts};

pub(super) fn refunds(facts: &Facts) -> Invariant {
    let payments = facts.payments.iter();
    let repaid: HashSet<Uuid> = payments
        .filter(|payment| payment.status == "refunded")
        .map(|payment| payment.order_id)
        .collect();
    let notifications = facts.notifications.iter();
    let told: HashSet<Uuid> = notifications
        .filter(|notification| notification.kind == "payment_refunded")
        .map(|notification| notification.order_id)
        .collect();
    let mut breaches = Vec::new();
    for order in &facts.orders {
        let id = order.order_id;
        let known = [order.refunded, repaid.contains(&id), told.contains(&id)];
        if known != [known[0]; 3] {
            let [order, payment, customer] = known.map(|known| if known { "yes" } else { "no" });
            breaches.push(format!(
                "order {id}: refunded for payment: {payment}, for order: {order}, \
                 the customer was told: {customer}"
            ));
        }
    }
    invariant(
        "refunds",
        "refunded at payment = refunded at order = the customer was told",
        facts.orders.len(),
        breaches,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::fixture;

    #[test]
    fn a_refund_that_all_know_and_one_that_was_never_made_hold() {
        assert!(refunds(&fixture::refunded()).breaches.is_empty());
        let facts = Facts {
            orders: vec![fixture::order("confirmed")],
            ..Facts::default()
        };
        assert!(refunds(&facts).breaches.is_empty());
    }

    #[test]
    fn a_refund_that_payment_order_or_the_customer_does_not_know_is_a_breach() {
        let mut unpaid = fixture::refunded();
        unpaid.payments[0].status = "completed".to_owned();
        let mut unnoted = fixture::refunded();
        unnoted.orders[0].refunded = false;
        let mut untold = fixture::refunded();
        untold.notifications.pop();
        // Lost for order and notification alike: no other rule sees it.
        let mut secret = fixture::refunded();
        secret.orders[0].refunded = false;
        secret.notifications.pop();
        for facts in [unpaid, unnoted, untold, secret] {
            assert_eq!(refunds(&facts).breaches.len(), 1);
        }
    }
}
