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
        request: None,
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

#[test]
fn a_payment_of_which_nothing_is_at_the_provider_is_voided_or_asked_for_under_the_next_key() {
    let called = leased(after(None, charge()));
    let absence =
        |payment: &Option<Payment>| Command::RecordAbsence(payment.as_ref().unwrap().last_call());
    let cancelled = after(called.clone(), cancel());
    assert_eq!(
        status(&after(cancelled.clone(), absence(&cancelled))),
        Status::Voided
    );

    let next = after(called.clone(), absence(&called));
    let found = next.as_ref().unwrap();
    assert_eq!(
        (found.status, found.key_number, found.attempts),
        (Status::Pending, 1, 0)
    );
    // As before the first call: nothing needs to be asked.
    assert_eq!(status(&after(next.clone(), cancel())), Status::Voided);
    // What an earlier call found missing counts no more.
    assert_eq!(after(next.clone(), absence(&called)), next);
    let again = leased(called.clone());
    assert_eq!(after(again.clone(), absence(&called)), again);
}

#[test]
fn a_refund_is_pending_until_it_has_succeeded_and_a_failed_one_is_made_again() {
    let completed = after(leased(after(None, charge())), capture());
    let refunding = leased(after(completed, cancel()));
    let pending = after(
        refunding,
        Command::RecordPendingRefund {
            id: "re_1".to_owned(),
        },
    );
    assert_eq!(pending.as_ref().unwrap().refund_id.as_deref(), Some("re_1"));
    let call = pending.as_ref().unwrap().last_call();
    let failed = after(pending, Command::RecordFailedRefund(call)).unwrap();
    assert_eq!((failed.status, failed.key_number), (Status::Refunding, 1));
    assert_eq!(failed.refund_id, None);
    let refunded = after(Some(failed), Command::RecordRefund);
    assert_eq!(status(&refunded), Status::Refunded);
}

/// What the provider does when it executes a request under a new key.
#[derive(Clone, Copy, Debug)]
enum Execution {
    Captures,
    Declines,
    /// It stores a 500, and has captured before or not.
    Fails {
        captures: bool,
    },
}

/// A provider that stores the response of each key, and counts captures.
#[derive(Debug, Default)]
struct Provider {
    keys: std::collections::BTreeMap<i32, Execution>,
    captures: u32,
    is_declined: bool,
}

impl Provider {
    /// The command that follows from a call, as in `charge`.
    fn call(&mut self, call: Call, next: Execution) -> Command {
        let executed = *self.keys.entry(call.key_number).or_insert_with(|| {
            let captures = matches!(
                next,
                Execution::Captures | Execution::Fails { captures: true }
            );
            self.captures += u32::from(captures);
            self.is_declined |= matches!(next, Execution::Declines);
            next
        });
        match executed {
            Execution::Captures => capture(),
            Execution::Declines => decline(),
            Execution::Fails { .. } if self.captures > 0 => capture(),
            Execution::Fails { .. } if self.is_declined => decline(),
            Execution::Fails { .. } => Command::RecordAbsence(call),
        }
    }
}

fn execution() -> impl Strategy<Value = Execution> {
    prop_oneof![
        Just(Execution::Captures),
        Just(Execution::Declines),
        any::<bool>().prop_map(|captures| Execution::Fails { captures }),
    ]
}

/// A step of a delivery, or of one of several workers.
#[derive(Clone, Copy, Debug)]
enum Step {
    Charge,
    Cancel,
    /// A worker leases the payment, if it needs a call.
    Lease,
    /// The call that was begun so many calls ago is executed, and its outcome is recorded.
    Call(usize, Execution),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Charge),
        1 => Just(Step::Cancel),
        4 => Just(Step::Lease),
        4 => (0..3_usize, execution()).prop_map(|(ago, execution)| Step::Call(ago, execution)),
    ]
}

proptest! {
    /// The order's creation and its cancellation, any number of times in any order, with calls of any
    /// number of workers in between, which may record their outcomes late and more than once. The
    /// provider captures, declines, or stores failures.
    #[test]
    fn any_order_and_any_duplication_of_events_ends_the_same_way(
        steps in prop::collection::vec(step(), 0..40),
        executions in prop::collection::vec(execution(), 4),
    ) {
        let mut payment: Option<Payment> = None;
        let mut provider = Provider::default();
        let mut calls: Vec<(Status, Call)> = Vec::new();
        // In the end both events have been delivered, and the provider captures or declines.
        let mut end = vec![Step::Charge, Step::Cancel];
        for execution in executions.into_iter().chain([Execution::Captures, Execution::Captures]) {
            end.extend([Step::Lease, Step::Call(0, execution)]);
        }
        for step in steps.into_iter().chain(end) {
            let due = payment.as_ref().map(|payment| payment.status);
            payment = match (step, due) {
                (Step::Charge, _) => after(payment, charge()),
                (Step::Cancel, _) => after(payment, cancel()),
                (Step::Lease, Some(due @ (Status::Pending | Status::Refunding))) => {
                    let payment = leased(payment);
                    calls.extend(payment.as_ref().map(|payment| (due, payment.last_call())));
                    payment
                }
                (Step::Call(ago, execution), Some(_)) if ago < calls.len() => {
                    let (due, call) = calls[calls.len() - 1 - ago];
                    let command = match due {
                        Status::Refunding => Command::RecordRefund,
                        _ => provider.call(call, execution),
                    };
                    after(payment, command)
                }
                (Step::Lease | Step::Call(..), _) => payment,
            };
        }
        prop_assert!(provider.captures <= 1, "{provider:?}");
        // A cancelled order never keeps money: a capture was refunded, and nothing else is captured.
        let end = status(&payment);
        prop_assert_eq!(provider.captures == 1, end == Status::Refunded, "{:?} {:?}", end, provider);
        prop_assert!(matches!(end, Status::Refunded | Status::Voided | Status::Failed), "{:?}", end);
    }
}
