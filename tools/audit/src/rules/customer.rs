//! What customers are told.

use std::collections::HashMap;

use contracts::Subject;
use uuid::Uuid;

use super::{Histories, invariant};
use crate::{
    Invariant,
    facts::{Facts, NotificationRow},
};

pub(super) fn customer(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let mut notified: HashMap<(Uuid, &str), usize> = HashMap::new();
    for notification in &facts.notifications {
        let key = (notification.order_id, notification.kind.as_str());
        *notified.entry(key).or_default() += 1;
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
            let found = notified.get(&(id, kind)).copied().unwrap_or_default();
            // Nobody is told of a confirmation after the cancellation.
            let may_lack = cause == Subject::OrderConfirmed && happened(Subject::OrderCancelled);
            if found != expected && !(found == 0 && may_lack) {
                breaches.push(format!(
                    "order {id}: {found} notifications {kind}, expected {expected}"
                ));
            }
        }
    }
    invariant(
        "customer",
        "exactly one notification of each kind per order",
        facts.notifications.len(),
        breaches,
    )
}

/// Without a mail server no mail is ever due.
pub(super) fn mails(facts: &Facts) -> Invariant {
    let due = facts.notifications.iter().filter(|told| told.is_mail_due);
    let given_up = facts.notifications.iter();
    let given_up = given_up.filter(|told| told.is_mail_given_up);
    let describe = |told: &NotificationRow, what: &str| {
        let (order, kind, attempts) = (told.order_id, &told.kind, told.mail_attempts);
        format!("order {order}: the mail about {kind} is {what} after {attempts} attempts")
    };
    Invariant {
        notes: given_up.map(|told| describe(told, "given up")).collect(),
        ..invariant(
            "mails",
            "every mail is sent, or given up",
            facts.notifications.len(),
            due.map(|told| describe(told, "not sent")).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::fixture;

    #[test]
    fn a_customer_who_was_told_holds_and_one_who_was_not_or_twice_is_a_breach() {
        let mut facts = fixture::refunded();
        let check = |facts: &Facts| {
            let events = facts.events.iter().collect();
            let histories = Histories::from([(Uuid::nil(), events)]);
            customer(facts, &histories).breaches.len()
        };
        assert_eq!(check(&facts), 0);
        let told = fixture::notification("order_cancelled");
        facts.notifications.push(told);
        assert_eq!(check(&facts), 1);
        facts.notifications.clear();
        assert_eq!(check(&facts), 2);
    }

    #[test]
    fn a_mail_that_was_sent_holds_one_that_is_due_is_a_breach_and_one_given_up_a_note() {
        let mut facts = fixture::refunded();
        assert!(mails(&facts).breaches.is_empty());
        facts.notifications[0].is_mail_due = true;
        assert_eq!(mails(&facts).breaches.len(), 1);
        facts.notifications[0].is_mail_due = false;
        facts.notifications[0].is_mail_given_up = true;
        let checked = mails(&facts);
        assert_eq!((checked.breaches.len(), checked.notes.len()), (0, 1));
    }
}
