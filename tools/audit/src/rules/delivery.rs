//! Streams against the inboxes of their subscribers, and dead letters.

use std::collections::HashSet;

use uuid::Uuid;

use super::invariant;
use crate::{Expectations, Invariant, facts::Facts};

pub(super) fn delivery(facts: &Facts, expectations: &Expectations) -> Invariant {
    let letters = facts.dead_letters.iter();
    let letters = letters.filter_map(|dead| Some((dead.service.as_deref()?, dead.event_id?)));
    let dead: HashSet<(&str, Uuid)> = letters.collect();
    let discarded = facts.discarded.iter();
    let discarded: HashSet<_> = discarded.map(|(name, id)| (name.as_str(), *id)).collect();
    let mut breaches = Vec::new();
    let mut notes = Vec::new();
    for event in &facts.unhandled {
        let key = (event.subscriber.name(), event.event_id);
        let (subscriber, id) = key;
        let subject = event.subject;
        if discarded.contains(&key) {
            notes.push(format!(
                "{subject} {id} was discarded by an operator and never applied by {subscriber}"
            ));
        } else if !dead.contains(&key) {
            breaches.push(format!(
                "{subject} {id} was not handled by {subscriber}, and is no dead letter of it"
            ));
        }
    }
    let (found, expected) = (facts.dead_letters.len(), expectations.dead_letters);
    if found != expected {
        breaches.push(format!("{found} dead letters, expected {expected}"));
        let letters = facts.dead_letters.iter().take(3);
        breaches.extend(letters.map(|letter| letter.description.clone()));
    }
    Invariant {
        notes,
        ..invariant(
            "delivery",
            "every event was handled by each subscriber; no dead letters",
            facts.subscribed,
            breaches,
        )
    }
}

#[cfg(test)]
mod tests {
    use contracts::{EventId, Service, Subject};

    use super::*;
    use crate::facts::{DeadLetter, Unhandled};

    fn unhandled() -> (Facts, Uuid) {
        let event_id = EventId::new().0;
        let unhandled = Unhandled {
            subscriber: Service::Payment,
            subject: Subject::OrderCancelled,
            event_id,
        };
        let facts = Facts {
            unhandled: vec![unhandled],
            ..Facts::default()
        };
        (facts, event_id)
    }

    fn dead_letter(service: &str, event_id: Uuid) -> DeadLetter {
        DeadLetter {
            service: Some(service.to_owned()),
            event_id: Some(event_id),
            description: String::new(),
        }
    }

    fn breaches(facts: &Facts) -> usize {
        let expectations = Expectations {
            dead_letters: facts.dead_letters.len(),
            ..Expectations::default()
        };
        delivery(facts, &expectations).breaches.len()
    }

    #[test]
    fn an_event_that_was_handled_or_is_a_dead_letter_of_its_subscriber_holds() {
        assert_eq!(breaches(&Facts::default()), 0);
        let (mut facts, event_id) = unhandled();
        facts.dead_letters.push(dead_letter("payment", event_id));
        assert_eq!(breaches(&facts), 0);
    }

    #[test]
    fn an_event_that_was_passed_over_is_a_breach() {
        let (mut facts, event_id) = unhandled();
        assert_eq!(breaches(&facts), 1);
        // Of another subscriber of the same event.
        facts.dead_letters.push(dead_letter("inventory", event_id));
        assert_eq!(breaches(&facts), 1);
    }

    #[test]
    fn a_dead_letter_that_an_operator_discarded_is_a_note() {
        let (mut facts, event_id) = unhandled();
        facts.discarded.push(("payment".to_owned(), event_id));
        let checked = delivery(&facts, &Expectations::default());
        assert_eq!((checked.breaches.len(), checked.notes.len()), (0, 1));
    }

    #[test]
    fn a_dead_letter_that_nobody_expects_is_a_breach() {
        let (mut facts, event_id) = unhandled();
        facts.dead_letters.push(dead_letter("payment", event_id));
        assert!(
            !delivery(&facts, &Expectations::default())
                .breaches
                .is_empty()
        );
    }
}
