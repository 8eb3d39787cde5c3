//! Every pair of command and status, and: any order and any duplication of inbound events ends the
//! same way.

use proptest::prelude::*;

use super::*;

/// Commands for an existing order, at the given second.
fn commands(second: i64) -> [Command; 7] {
    [
        Command::RecordPayment,
        Command::FailPayment,
        Command::Confirm,
        Command::Reject,
        Command::RecordRefund,
        Command::Cancel,
        expire(second),
    ]
}

fn expire(second: i64) -> Command {
    Command::Expire { now: at(second) }
}

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(second).unwrap()
}

fn new_order() -> NewOrder {
    let price = Money::new(1999, "EUR".parse().unwrap());
    NewOrder {
        id: OrderId::new(),
        customer_id: CustomerId::new(),
        lines: vec![OrderLine {
            sku: "SKU-0001".parse().unwrap(),
            quantity: 1.try_into().unwrap(),
            unit_price: price,
        }],
        total: price,
        payment_method: "tok_visa".parse().unwrap(),
        deadline: at(60),
    }
}

fn accepted() -> Order {
    let events = decide(None, Command::Create(new_order())).unwrap();
    evolve(None, &events[0], at(0)).unwrap()
}

/// The order after all commands; a rejected one changes nothing.
fn after(mut order: Order, commands: &[Command], second: i64) -> Order {
    for command in commands {
        for event in decide(Some(&order), command.clone()).unwrap_or_default() {
            order = evolve(Some(order), &event, at(second)).unwrap();
        }
    }
    order
}

fn end(order: &Order) -> (Status, Refund, bool) {
    (order.status, order.refund(), order.paid)
}

#[test]
fn a_paid_and_reserved_order_is_confirmed() {
    let order = after(accepted(), &[Command::RecordPayment], 1);
    assert_eq!((order.status, order.version), (Status::Paid, 2));
    let order = after(order, &[Command::Confirm], 2);
    assert_eq!(end(&order), (Status::Confirmed, Refund::None, true));
    assert_eq!(order.updated_at, at(2));
}

#[test]
fn every_failure_cancels_the_order_with_its_reason() {
    use CancelReason::{CustomerRequest, OutOfStock, PaymentFailed, TimedOut};
    let failed = Command::FailPayment;
    for (commands, expected) in [
        (vec![failed], (PaymentFailed, Refund::None, false)),
        (
            vec![Command::RecordPayment, Command::Reject],
            (OutOfStock, Refund::Pending, true),
        ),
        (vec![expire(60)], (TimedOut, Refund::None, false)),
        (
            vec![Command::Cancel],
            (CustomerRequest, Refund::None, false),
        ),
    ] {
        let (reason, refund, paid) = expected;
        let ended = end(&after(accepted(), &commands, 1));
        assert_eq!(ended, (Status::Cancelled(reason), refund, paid));
    }
    let in_time = after(accepted(), &[expire(59)], 1);
    assert_eq!(in_time.status, Status::Pending);
}

#[test]
fn a_confirmed_order_can_be_cancelled_and_its_refund_is_then_due() {
    let commands = [Command::RecordPayment, Command::Confirm, Command::Cancel];
    let order = after(accepted(), &commands, 1);
    assert_eq!(order.refund(), Refund::Pending);
    let order = after(order, &[Command::RecordRefund], 2);
    assert_eq!(order.refund(), Refund::Done);
}

#[test]
fn a_capture_after_the_cancellation_makes_a_refund_due() {
    let order = after(accepted(), &[expire(60), Command::RecordPayment], 60);
    let cancelled = Status::Cancelled(CancelReason::TimedOut);
    assert_eq!(end(&order), (cancelled, Refund::Pending, true));
}

#[test]
fn a_customer_may_cancel_twice_but_not_an_order_that_failed() {
    let cancelled = after(accepted(), &[Command::Cancel], 1);
    assert_eq!(decide(Some(&cancelled), Command::Cancel), Ok(vec![]));
    let failed = after(accepted(), &[Command::FailPayment], 1);
    let error = decide(Some(&failed), Command::Cancel).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the order is already cancelled: payment_failed"
    );
}

#[test]
fn a_cancelled_order_stays_cancelled_and_keeps_its_reason() {
    let cancelled = after(accepted(), &[Command::Reject], 1);
    for command in commands(100) {
        let order = after(cancelled.clone(), std::slice::from_ref(&command), 100);
        assert_eq!(order.status, cancelled.status, "{command:?}");
    }
}

#[test]
fn a_contradiction_is_rejected_and_names_both_sides() {
    let confirmed = after(accepted(), &[Command::RecordPayment, Command::Confirm], 1);
    for (command, reported) in [
        (Command::FailPayment, "a declined payment"),
        (Command::Reject, "a rejected reservation"),
        (Command::RecordRefund, "a refund"),
    ] {
        let error = decide(Some(&confirmed), command).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{reported} contradicts an order that is confirmed")
        );
    }
}

#[test]
fn only_a_creation_begins_an_order_and_only_once() {
    for command in commands(1) {
        assert_eq!(decide(None, command), Err(InvalidTransition::UnknownOrder));
    }
    let again = decide(Some(&accepted()), Command::Create(new_order()));
    assert_eq!(again, Err(InvalidTransition::AlreadyCreated));
    assert_eq!(evolve(None, &Event::Paid, at(1)), None);
}

/// What the other services can report about one order, in the order in which it happens.
fn histories() -> impl Strategy<Value = Vec<Command>> {
    let payment = Command::RecordPayment;
    prop_oneof![
        Just(vec![Command::FailPayment]),
        Just(vec![payment.clone(), Command::Confirm]),
        Just(vec![payment, Command::Reject, Command::RecordRefund]),
    ]
}

/// A history, and the same with repetitions, shuffled. The refund stays behind the rejection that
/// caused it: it answers an order.cancelled that only this service publishes.
fn deliveries() -> impl Strategy<Value = (Vec<Command>, Vec<Command>)> {
    let repeats = prop::collection::vec(any::<prop::sample::Index>(), 0..6);
    (histories(), repeats).prop_flat_map(|(history, repeats)| {
        let mut delivered = history.clone();
        let repeated = repeats.iter().map(|index| index.get(&history).clone());
        delivered.extend(repeated.collect::<Vec<_>>());
        let is_refund = |command: &mut Command| *command == Command::RecordRefund;
        let refunds: Vec<Command> = delivered.extract_if(.., is_refund).collect();
        Just(delivered)
            .prop_shuffle()
            .prop_map(move |mut shuffled| {
                shuffled.extend(refunds.clone());
                (history.clone(), shuffled)
            })
    })
}

proptest! {
    #[test]
    fn any_order_and_any_duplication_of_events_ends_the_same_way(
        (history, delivered) in deliveries()
    ) {
        let order = accepted();
        let expected = end(&after(order.clone(), &history, 1));
        prop_assert_eq!(end(&after(order, &delivered, 1)), expected);
    }

    #[test]
    fn the_version_counts_events_and_no_order_is_both_confirmed_and_refunded(
        commands in prop::collection::vec(prop::sample::select(commands(100).to_vec()), 0..20)
    ) {
        let mut order = accepted();
        let mut version = 1;
        for command in commands {
            for event in decide(Some(&order), command).unwrap_or_default() {
                version += 1;
                order = evolve(Some(order), &event, at(100)).unwrap();
            }
        }
        prop_assert_eq!(order.version, version);
        prop_assert!(!(order.status == Status::Confirmed && order.refunded));
    }
}
