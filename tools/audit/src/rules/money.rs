//! The provider's ledger and the payment service's records against the orders.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::invariant;
use crate::{
    Invariant,
    facts::{Balance, Facts, OrderRow, PaymentRow},
};

pub(super) fn money(facts: &Facts) -> Invariant {
    let mut balances: HashMap<&str, Vec<&Balance>> = HashMap::new();
    for balance in &facts.balances {
        balances.entry(&balance.order_id).or_default().push(balance);
    }
    let payments: HashMap<Uuid, &PaymentRow> = facts
        .payments
        .iter()
        .map(|payment| (payment.order_id, payment))
        .collect();
    let mut breaches = Vec::new();
    let mut orders = HashSet::new();
    for order in &facts.orders {
        let id = order.order_id.to_string();
        let charged = balances.get(id.as_str()).map_or(&[][..], Vec::as_slice);
        let payment = payments.get(&order.order_id).copied();
        breaches.extend(
            check(order, charged, payment)
                .into_iter()
                .map(|breach| format!("order {id} ({}): {breach}", order.status)),
        );
        orders.insert(id);
    }
    for order in balances.keys().filter(|order| !orders.contains(**order)) {
        breaches.push(format!("the provider charged for an unknown order {order}"));
    }
    invariant(
        "money",
        "provider and payments table: captured - refunded = confirmed; never two captures",
        facts.orders.len(),
        breaches,
    )
}

fn check(order: &OrderRow, charged: &[&Balance], payment: Option<&PaymentRow>) -> Vec<String> {
    let mut breaches = Vec::new();
    let (total, currency) = (order.total_amount, &order.total_currency);
    for balance in charged {
        if balance.currency != *currency || balance.captured != total {
            breaches.push(format!(
                "the provider captured {} {}, the total is {total} {currency}",
                balance.captured, balance.currency
            ));
        }
    }
    let owed = if order.status == "confirmed" {
        total
    } else {
        0
    };
    let kept: i64 = charged
        .iter()
        .map(|balance| balance.captured - balance.refunded)
        .sum();
    if kept != owed {
        breaches.push(format!(
            "the provider keeps {kept}, the customer owes {owed}"
        ));
    }
    let captures: u32 = charged.iter().map(|balance| balance.captures).sum();
    if captures > 1 {
        breaches.push(format!("the provider captured {captures} times"));
    }
    let recorded = payment
        .filter(|payment| payment.status == "completed")
        .and_then(|payment| payment.amount)
        .unwrap_or_default();
    if recorded != kept {
        breaches.push(format!(
            "the payment database has {recorded}, the provider keeps {kept}"
        ));
    }
    let other_currency = payment
        .and_then(|payment| payment.currency.as_ref())
        .filter(|recorded| *recorded != currency);
    if let Some(recorded) = other_currency {
        breaches.push(format!(
            "the payment is in {recorded}, the order in {currency}"
        ));
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::fixture::order;

    fn balance(captured: i64, refunded: i64, captures: u32) -> Balance {
        Balance {
            order_id: Uuid::nil().to_string(),
            currency: "EUR".to_owned(),
            captured,
            refunded,
            captures,
        }
    }

    fn payment(status: &str) -> PaymentRow {
        PaymentRow {
            order_id: Uuid::nil(),
            customer_id: Uuid::nil(),
            status: status.to_owned(),
            amount: Some(500),
            currency: Some("EUR".to_owned()),
            reference: None,
        }
    }

    #[test]
    fn one_capture_of_a_confirmed_order_and_a_full_refund_of_a_cancelled_one_hold() {
        let (kept, returned) = (balance(500, 0, 1), balance(500, 500, 1));
        let breaches = check(&order("confirmed"), &[&kept], Some(&payment("completed")));
        assert!(breaches.is_empty(), "{breaches:?}");
        let breaches = check(
            &order("cancelled"),
            &[&returned],
            Some(&payment("refunded")),
        );
        assert!(breaches.is_empty(), "{breaches:?}");
    }

    #[test]
    fn a_double_capture_a_missing_refund_and_a_missing_record_are_breaches() {
        let twice = balance(1000, 500, 2);
        let breaches = check(&order("confirmed"), &[&twice], Some(&payment("completed")));
        assert!(breaches.contains(&"the provider captured 2 times".to_owned()));
        let kept = balance(500, 0, 1);
        let breaches = check(&order("cancelled"), &[&kept], Some(&payment("completed")));
        assert_eq!(breaches, ["the provider keeps 500, the customer owes 0"]);
        let breaches = check(&order("confirmed"), &[&kept], None);
        assert_eq!(
            breaches,
            ["the payment database has 0, the provider keeps 500"]
        );
    }
}
