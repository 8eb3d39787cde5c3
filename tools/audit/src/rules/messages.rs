//! Outboxes against streams, and notifications against orders.

use std::collections::HashMap;

use contracts::Subject;
use uuid::Uuid;

use super::Histories;
use crate::{Expectations, Invariant, facts::Facts};

pub(super) fn messages(facts: &Facts, expectations: &Expectations) -> Invariant {
    let mut breaches = Vec::new();
    let mut checked = 0;
    for (service, outbox) in &facts.outboxes {
        let mut copies = facts.streams.get(service).cloned().unwrap_or_default();
        for row in outbox {
            checked += 1;
            let found = copies.remove(&row.event_id).unwrap_or_default();
            let missing = found < expectations.copies && row.is_retained;
            // More copies are allowed: a relay that dies publishes again what it has not noted.
            if !row.sent || missing {
                breaches.push(format!(
                    "{} {} of {service}: sent {}, {found} times in the stream",
                    row.subject, row.event_id, row.sent
                ));
            }
        }
        let unknown = copies.into_keys();
        breaches.extend(
            unknown.map(|id| format!("{id} is in the stream of {service}, not in its outbox")),
        );
    }
    let (found, expected) = (facts.dead_letters.len(), expectations.dead_letters);
    if found != expected {
        breaches.push(format!("{found} dead letters, expected {expected}"));
        breaches.extend(facts.dead_letters.iter().take(3).cloned());
    }
    Invariant {
        name: "messages",
        rule: "every outbox row is in its stream, or handled by all; no dead letters",
        checked,
        breaches,
    }
}

pub(super) fn customer(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let mut notified: HashMap<(Uuid, &str), usize> = HashMap::new();
    for (order, kind) in &facts.notifications {
        *notified.entry((*order, kind)).or_default() += 1;
    }
    let mut breaches = Vec::new();
    for order in &facts.orders {
        let id = order.order_id;
        for (kind, cause) in [
            ("order_confirmed", Subject::OrderConfirmed),
            ("order_cancelled", Subject::OrderCancelled),
            ("payment_refunded", Subject::OrderRefunded),
        ] {
            let happened = |subject: Subject| {
                let mut history = histories.get(&id).into_iter().flatten();
                history.any(|event| event.subject == subject.as_str())
            };
            let expected = usize::from(happened(cause));
            let found = notified.remove(&(id, kind)).unwrap_or_default();
            // Nobody is told of a confirmation after the cancellation.
            let may_lack = cause == Subject::OrderConfirmed && happened(Subject::OrderCancelled);
            if found != expected && !(found == 0 && may_lack) {
                breaches.push(format!(
                    "order {id}: {found} notifications {kind}, expected {expected}"
                ));
            }
        }
    }
    let unknown = notified.into_keys();
    breaches.extend(
        unknown.map(|(order, kind)| format!("notification {kind} about an unknown order {order}")),
    );
    Invariant {
        name: "customer",
        rule: "exactly one notification of each kind per order",
        checked: facts.notifications.len(),
        breaches,
    }
}
