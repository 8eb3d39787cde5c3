//! Charge, decline, cancellation in any order and any duplication.

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

fn identity() -> Identity {
    Identity {
        payment_id: PaymentId::new(),
        order_id: OrderId::new(),
        customer_id: CustomerId::new(),
    }
}

fn charge() -> Command {
    let charge = Charge {
        amount: Money::new(1999, "EUR".parse().unwrap()),
        method: "tok_visa".parse().unwrap(),
        lines: vec![],
        deadline: None,
        cause: cause(),
    };
    Command::Charge(identity(), charge)
}

fn cancel() -> Command {
    Command::Cancel(identity(), cause())
}

fn capture() -> Command {
    Command::RecordCapture {
        reference: "pi_1".into(),
    }
}

fn decline() -> Command {
    Command::RecordDecline {
        code: "generic_decline".into(),
    }
}

/// The payment after a command; a rejected one changes nothing.
fn after(payment: Option<Payment>, command: Command) -> Option<Payment> {
    let events = decide(payment.as_ref(), command).unwrap_or_default();
    let at = OffsetDateTime::UNIX_EPOCH;
    events
        .iter()
        .fold(payment, |payment, event| evolve(payment, event, at))
}

/// The payment after the worker has leased it.
fn leased(payment: Option<Payment>) -> Option<Payment> {
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
    let pending = leased(after(None, charge()));
    assert_eq!(
        status(&after(pending.clone(), capture())),
        Status::Completed
    );
    let failed = after(pending, decline()).unwrap();
    assert_eq!(failed.status, Status::Failed);
    assert_eq!(failed.failure_code.as_deref(), Some("generic_decline"));
}

#[test]
fn a_cancellation_that_arrives_first_leaves_a_tombstone_and_nothing_is_charged() {
    let tombstone = after(None, cancel());
    assert_eq!(status(&tombstone), Status::Voided);
    assert_eq!(after(tombstone.clone(), charge()), tombstone);
}

#[test]
fn a_cancellation_before_the_first_call_voids_the_payment() {
    let voided = after(after(None, charge()), cancel());
    assert_eq!(status(&voided), Status::Voided);
}

#[test]
fn a_cancellation_during_a_call_waits_for_the_response() {
    let open = after(leased(after(None, charge())), cancel());
    assert_eq!(status(&open), Status::Pending);
    assert_eq!(status(&after(open.clone(), decline())), Status::Failed);
    let refunding = after(open, capture());
    assert_eq!(status(&refunding), Status::Refunding);
    let refunded = after(refunding, Command::RecordRefund);
    assert_eq!(status(&refunded), Status::Refunded);
}

#[test]
fn a_contradiction_is_rejected_and_names_both_sides() {
    let voided = after(None, cancel());
    let error = decide(voided.as_ref(), decline()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a decline contradicts a payment that is voided"
    );
    for command in [capture(), decline(), Command::RecordRefund] {
        assert_eq!(
            decide(None, command),
            Err(InvalidTransition::UnknownPayment)
        );
    }
    assert_eq!(
        evolve(None, &Event::Refunded, OffsetDateTime::UNIX_EPOCH),
        None
    );
}

/// A step of a delivery.
#[derive(Clone, Copy, Debug)]
enum Step {
    Charge,
    Cancel,
    /// The worker calls the provider, if the payment needs it.
    Call,
}

proptest! {
    /// The order's creation and its cancellation, any number of times in any order, with the
    /// provider's response (always the same, since the key is the same) anywhere in between.
    #[test]
    fn any_order_and_any_duplication_of_events_ends_the_same_way(
        delivered in prop::collection::vec(
            prop_oneof![Just(Step::Charge), Just(Step::Cancel), Just(Step::Call)], 0..12),
        captures in any::<bool>(),
    ) {
        let mut payment: Option<Payment> = None;
        let mut captured = false;
        // In the end both events have been delivered and the provider has responded to every call.
        let all = [Step::Charge, Step::Cancel, Step::Call, Step::Call];
        for step in delivered.into_iter().chain(all) {
            let due = payment.as_ref().map(|payment| payment.status);
            payment = match (step, due) {
                (Step::Charge, _) => after(payment, charge()),
                (Step::Cancel, _) => after(payment, cancel()),
                (Step::Call, Some(Status::Pending)) => {
                    after(leased(payment), if captures { capture() } else { decline() })
                }
                (Step::Call, Some(Status::Refunding)) => {
                    after(leased(payment), Command::RecordRefund)
                }
                (Step::Call, _) => payment,
            };
            captured |= payment.as_ref().is_some_and(|payment| payment.reference.is_some());
        }
        // A cancelled order never keeps money: a capture was refunded, and nothing else is captured.
        let end = status(&payment);
        prop_assert_eq!(captured, end == Status::Refunded);
        prop_assert!(matches!(end, Status::Refunded | Status::Voided | Status::Failed), "{:?}", end);
    }
}
