use contracts::{CorrelationId, EventId};
use proptest::prelude::*;

use super::*;

fn cause() -> Cause {
    Cause {
        correlation_id: CorrelationId::new(),
        causation_id: EventId::new(),
        traceparent: None,
    }
}

fn charge() -> Command {
    let amount = Money::new(1999, "EUR").unwrap();
    Command::Charge(Charge {
        amount,
        method: "tok_visa".into(),
        lines: vec![],
        cause: cause(),
    })
}

fn capture() -> Command {
    Command::NoteCapture {
        reference: "pi_1".into(),
    }
}

fn decline() -> Command {
    Command::NoteDecline {
        code: "generic_decline".into(),
    }
}

/// Tells a payment everything, ignoring refusals, as the service does.
fn tell(payment: Option<Payment>, command: Command) -> Option<Payment> {
    let events = decide(payment.as_ref(), command).unwrap_or_default();
    if events.is_empty() {
        return payment;
    }
    let payment = payment.unwrap_or_else(|| Payment::of(OrderId::new(), CustomerId::new()));
    Some(events.iter().fold(payment, Payment::evolve))
}

fn asked(payment: Option<Payment>) -> Option<Payment> {
    payment.map(|payment| Payment {
        attempts: payment.attempts + 1,
        ..payment
    })
}

fn status(payment: &Option<Payment>) -> Status {
    payment.as_ref().unwrap().status
}

#[test]
fn a_charge_is_captured_or_declined() {
    let pending = asked(tell(None, charge()));
    assert_eq!(status(&tell(pending.clone(), capture())), Status::Completed);
    let failed = tell(pending, decline()).unwrap();
    assert_eq!(
        (failed.status, failed.failure_code.as_deref()),
        (Status::Failed, Some("generic_decline"))
    );
}

#[test]
fn a_cancellation_that_comes_first_leaves_a_tombstone_and_nothing_is_charged() {
    let tombstone = tell(None, Command::Cancel(cause()));
    let after = tell(tombstone.clone(), charge());
    assert_eq!(after, tombstone);
    assert!(!after.unwrap().is_due());
}

#[test]
fn a_cancellation_before_the_provider_was_asked_voids() {
    assert_eq!(
        status(&tell(tell(None, charge()), Command::Cancel(cause()))),
        Status::Voided
    );
}

#[test]
fn a_cancellation_while_the_provider_is_asked_waits_for_the_answer() {
    let open = tell(asked(tell(None, charge())), Command::Cancel(cause()));
    assert_eq!(status(&open), Status::Pending);
    assert_eq!(status(&tell(open.clone(), decline())), Status::Failed);
    let refunding = tell(open, capture());
    assert_eq!(status(&refunding), Status::Refunding);
    assert_eq!(
        status(&tell(refunding, Command::NoteRefund)),
        Status::Refunded
    );
}

#[test]
fn contradictions_are_refused() {
    let voided = tell(None, Command::Cancel(cause()));
    assert_eq!(
        decide(voided.as_ref(), decline()).unwrap_err().to_string(),
        "NoteDecline { code: \"generic_decline\" } contradicts a payment that is Some(Voided)"
    );
    assert!(decide(None, capture()).is_err() && decide(None, Command::NoteRefund).is_err());
}

proptest! {
    /// What is heard: the order's creation and its cancellation, any number of times in any order, with the
    /// provider's answer (always the same one, since it is asked with the same key) anywhere in between.
    #[test]
    fn any_order_and_any_duplication_ends_the_same_way(
        heard in proptest::collection::vec(prop_oneof![Just('c'), Just('x'), Just('p')], 0..12),
        captures in any::<bool>(),
    ) {
        let mut payment: Option<Payment> = None;
        let mut captured = false;
        // Whatever came before, at the end both have been delivered and the provider is asked until it has answered.
        for step in heard.into_iter().chain(['c', 'x', 'p', 'p']) {
            let ask = |payment: Option<Payment>| match payment.as_ref().map(|payment| payment.status) {
                Some(Status::Pending) => tell(asked(payment), if captures { capture() } else { decline() }),
                Some(Status::Refunding) => tell(asked(payment), Command::NoteRefund),
                _ => payment,
            };
            payment = match step {
                'c' => tell(payment, charge()),
                'x' => tell(payment, Command::Cancel(cause())),
                _ => ask(payment),
            };
            captured |= payment.as_ref().is_some_and(|payment| payment.reference.is_some());
        }
        let end = status(&payment);
        // A cancelled order never keeps money: what was captured was given back, what was not never will be.
        prop_assert_eq!(captured, end == Status::Refunded);
        prop_assert!(matches!(end, Status::Refunded | Status::Voided | Status::Failed), "{:?}", end);
        prop_assert!(!payment.unwrap().is_due());
    }
}
