//! Whether charges were allowed at the time.
//!
//! A cancelled order may have been charged: the charge was in flight, or its outcome unknown, when
//! the cancellation came. It must be refunded then, which the rule of the money states. But it must
//! not have been charged when payment cannot have asked for the charge in time, that is
//! - when payment heard of the order only after the order's deadline, or
//! - when payment heard of the cancellation before it heard of the order, in transactions that
//!   cannot have overlapped, or
//! - when the provider captured so long after the deadline that it cannot have been asked before.
//!
//! A capture soon after the deadline or the cancellation is allowed: the call was in flight.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use contracts::Subject;
use uuid::Uuid;

use super::{Histories, invariant};
use crate::{Invariant, facts::Facts};

/// How long a provider may execute a request whose client has given up.
const EXECUTION_SECONDS: f64 = 120.0;
/// How much the clocks of the databases of order and payment may differ.
const CLOCKS_DIFFER_SECONDS: f64 = 1.0;
/// How long a transaction of a service may take. Of two that overlap, the one that began first may
/// see what the other has done.
const TRANSACTION_SECONDS: f64 = 10.0;

pub(super) fn charges(facts: &Facts, histories: &Histories<'_>) -> Invariant {
    let charged: HashSet<&str> = facts
        .balances
        .iter()
        .filter(|balance| balance.captures > 0)
        .map(|balance| balance.order_id.as_str())
        .collect();
    let captures = facts.payments.iter().filter_map(|payment| {
        let at = captured_at(payment.reference.as_deref()?)?;
        Some((payment.order_id, at))
    });
    let captures: HashMap<Uuid, f64> = captures.collect();
    let mut breaches = Vec::new();
    let mut checked = 0;
    for order in facts
        .orders
        .iter()
        .filter(|order| order.status == "cancelled")
    {
        let id = order.order_id;
        if !charged.contains(id.to_string().as_str()) {
            continue;
        }
        checked += 1;
        let captured = captures.get(&id).map(|at| at - order.deadline);
        if let Some(late) = captured.filter(|late| *late > EXECUTION_SECONDS) {
            breaches.push(format!(
                "order {id} was charged {late:.1} s after its deadline"
            ));
        }
        let heard = |subject| heard(&facts.heard_by_payment, histories, id, subject);
        // An event that the inbox has forgotten says nothing.
        let Some(created) = heard(Subject::OrderCreated) else {
            continue;
        };
        let late = created - order.deadline;
        if late > CLOCKS_DIFFER_SECONDS {
            breaches.push(format!(
                "order {id} was charged, but payment heard of it {late:.1} s after its deadline"
            ));
        }
        if heard(Subject::OrderCancelled)
            .is_some_and(|cancelled| cancelled + TRANSACTION_SECONDS < created)
        {
            breaches.push(format!(
                "order {id} was charged, but payment heard of its cancellation first"
            ));
        }
    }
    invariant(
        "charges",
        "no cancelled order was charged unless payment asked for it in time",
        checked,
        breaches,
    )
}

/// When the provider captured, in seconds: the sandbox names charges by a UUIDv7.
fn captured_at(reference: &str) -> Option<f64> {
    let id: Uuid = reference.strip_prefix("pi_")?.parse().ok()?;
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    Some(Duration::new(seconds, nanos).as_secs_f64())
}

/// When payment handled an event of an order.
fn heard(
    times: &HashMap<Uuid, f64>,
    histories: &Histories<'_>,
    order: Uuid,
    subject: Subject,
) -> Option<f64> {
    let mut history = histories.get(&order)?.iter();
    let event = history.find(|event| event.subject == subject.as_str())?;
    times.get(&event.event_id).copied()
}

#[cfg(test)]
mod tests {
    use uuid::{NoContext, Timestamp};

    use super::*;
    use crate::{facts::Balance, rules::fixture};

    /// The breaches of an order with its deadline at 60 s that was charged, when payment heard of
    /// its creation and of its cancellation at these times.
    fn breaches(created: f64, cancelled: f64) -> usize {
        check(fixture::refunded(), created, cancelled)
    }

    fn check(mut facts: Facts, created: f64, cancelled: f64) -> usize {
        facts.balances.push(Balance {
            order_id: Uuid::nil().to_string(),
            currency: "EUR".to_owned(),
            captured: 500,
            refunded: 500,
            captures: 1,
        });
        for (event, at) in facts.events.iter().zip([created, cancelled]) {
            facts.heard_by_payment.insert(event.event_id, at);
        }
        let events = facts.events.iter().collect();
        let histories = Histories::from([(Uuid::nil(), events)]);
        charges(&facts, &histories).breaches.len()
    }

    #[test]
    fn a_charge_that_was_in_flight_at_the_cancellation_holds() {
        assert_eq!(breaches(1.0, 2.0), 0);
        assert_eq!(breaches(59.0, 61.0), 0);
        assert_eq!(
            breaches(3.0, 2.0),
            0,
            "the transactions may have overlapped"
        );
    }

    #[test]
    fn a_capture_soon_after_the_deadline_holds_and_one_much_later_is_a_breach() {
        for (captured, expected) in [(59, 0), (100, 0), (200, 1)] {
            let at = Timestamp::from_unix(NoContext, captured, 0);
            let mut facts = fixture::refunded();
            facts.payments[0].reference = Some(format!("pi_{}", Uuid::new_v7(at).simple()));
            assert_eq!(check(facts, 1.0, 61.0), expected, "{captured}");
        }
        let mut foreign = fixture::refunded();
        foreign.payments[0].reference = Some("pi_3MtwBwLkdIwHu7ix28a3tqPa".to_owned());
        assert_eq!(check(foreign, 1.0, 61.0), 0, "its time is unknown");
    }

    #[test]
    fn a_charge_that_cannot_have_been_asked_for_in_time_is_a_breach() {
        assert_eq!(breaches(90.0, 91.0), 1, "payment heard of it too late");
        assert_eq!(breaches(13.0, 2.0), 1, "the cancellation came first");
    }
}
