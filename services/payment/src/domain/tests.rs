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
        method: Some("tok_visa".parse().unwrap()),
        lines: vec![],
        deadline: None,
        request: Some("the method is in it, too".into()),
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
        2 => Just(Execution::Captures),
        1 => Just(Execution::Declines),
        1 => Just(Execution::Fails { captures: true }),
        4 => Just(Execution::Fails { captures: false }),
    ]
}

/// A step of a delivery, or of one of several workers. Numbers count back from the latest.
#[derive(Clone, Copy, Debug)]
enum Step {
    Charge,
    Cancel,
    /// A worker leases the payment, if it needs a call.
    Lease,
    /// The provider executes a call, or answers it from what it has stored.
    Execute(usize, Execution),
    /// The outcome of a call is recorded; not necessarily in the order of the calls, nor once.
    Record(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Charge),
        1 => Just(Step::Cancel),
        6 => Just(Step::Lease),
        6 => (0..3_usize, execution()).prop_map(|(call, next)| Step::Execute(call, next)),
        6 => (0..3_usize).prop_map(Step::Record),
    ]
}

/// The item that is so many before the last one.
fn back<T>(items: &[T], number: usize) -> Option<&T> {
    items.iter().rev().nth(number)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// The order's creation and its cancellation, any number of times in any order, with calls of
    /// any number of workers in between, whose outcomes are recorded late, in any order and more
    /// than once. The provider captures, declines, or stores failures.
    #[test]
    fn any_order_and_any_duplication_of_events_ends_the_same_way(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mut payment: Option<Payment> = None;
        let mut provider = Provider::default();
        let mut calls: Vec<(Status, Call)> = Vec::new();
        let mut outcomes: Vec<Command> = Vec::new();
        // In the end both events have been delivered, and the provider has answered every call.
        let mut end = vec![Step::Charge, Step::Cancel];
        for _ in 0..2 {
            end.extend([Step::Lease, Step::Execute(0, Execution::Captures), Step::Record(0)]);
        }
        for step in steps.into_iter().chain(end) {
            let due = payment.as_ref().map(|payment| payment.status);
            match step {
                Step::Charge => payment = after(payment, charge()),
                Step::Cancel => payment = after(payment, cancel()),
                Step::Lease => {
                    if let Some(due @ (Status::Pending | Status::Refunding)) = due {
                        payment = leased(payment);
                        calls.extend(payment.as_ref().map(|payment| (due, payment.last_call())));
                    }
                }
                Step::Execute(number, next) => {
                    outcomes.extend(back(&calls, number).map(|(due, call)| match due {
                        Status::Refunding => Command::RecordRefund,
                        _ => provider.call(*call, next),
                    }));
                }
                Step::Record(number) => {
                    if let Some(outcome) = back(&outcomes, number) {
                        payment = after(payment, outcome.clone());
                    }
                }
            }
            let settled = payment.as_ref().filter(|payment| payment.status != Status::Pending);
            if let Some(charge) = settled.and_then(|payment| payment.charge.as_ref()) {
                prop_assert!(charge.method.is_none() && charge.request.is_none());
            }
        }
        prop_assert!(provider.captures <= 1, "{provider:?}");
        // A cancelled order never keeps money: a capture was refunded, and nothing else is
        // captured.
        let end = status(&payment);
        prop_assert_eq!(provider.captures == 1, end == Status::Refunded, "{:?} {:?}", end, provider);
        prop_assert!(matches!(end, Status::Refunded | Status::Voided | Status::Failed), "{:?}", end);
    }
}
