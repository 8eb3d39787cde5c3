//! Every pair of command and status, and: any order and any duplication of what is heard ends the
//! same way.

use proptest::prelude::*;

use super::*;

const COMMANDS: [Command; 7] = [
    Command::NotePayment,
    Command::FailPayment,
    Command::Confirm,
    Command::Reject,
    Command::NoteRefund,
    Command::Cancel,
    Command::Expire,
];

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(second).unwrap()
}

fn accepted() -> Order {
    let price = Money::new(1999, "EUR").unwrap();
    let created = Created {
        id: OrderId::new(),
        customer_id: CustomerId::new(),
        lines: vec![OrderLine {
            sku: "SKU-0001".into(),
            quantity: 1,
            unit_price: price.clone(),
        }],
        total: price,
        payment_method: "tok_visa".into(),
        deadline: at(60),
    };
    evolve(None, &Event::Created(created), at(0)).unwrap()
}

/// Tells an order everything in turn; a refusal changes nothing.
fn told(mut order: Order, commands: &[Command], now: OffsetDateTime) -> Order {
    for command in commands {
        if let Ok(Some(event)) = decide(&order, *command, now) {
            order = evolve(Some(order), &event, now).unwrap();
        }
    }
    order
}

fn end(order: &Order) -> (Status, Refund, bool) {
    (order.status, order.refund(), order.paid)
}

#[test]
fn the_happy_path_is_pending_paid_confirmed() {
    let order = told(accepted(), &[Command::NotePayment], at(1));
    assert_eq!((order.status, order.version), (Status::Paid, 2));
    let order = told(order, &[Command::Confirm], at(2));
    assert_eq!(
        (order.status, order.refund(), order.updated_at),
        (Status::Confirmed, Refund::None, at(2))
    );
}

#[test]
fn every_failure_ends_cancelled_with_its_reason() {
    let ends = |commands: &[Command], now| end(&told(accepted(), commands, at(now)));
    use CancelReason::*;
    assert_eq!(
        ends(&[Command::FailPayment], 1),
        (Status::Cancelled(PaymentFailed), Refund::None, false)
    );
    assert_eq!(
        ends(&[Command::NotePayment, Command::Reject], 1),
        (Status::Cancelled(OutOfStock), Refund::Pending, true)
    );
    assert_eq!(
        ends(&[Command::Expire], 60),
        (Status::Cancelled(TimedOut), Refund::None, false)
    );
    assert_eq!(
        ends(&[Command::Expire], 59),
        (Status::Pending, Refund::None, false)
    );
    assert_eq!(
        ends(&[Command::Cancel], 1),
        (Status::Cancelled(CustomerRequest), Refund::None, false)
    );
}

#[test]
fn a_confirmed_order_can_be_cancelled_and_its_refund_is_then_due() {
    let order = told(
        accepted(),
        &[Command::NotePayment, Command::Confirm, Command::Cancel],
        at(1),
    );
    assert_eq!(order.refund(), Refund::Pending);
    assert_eq!(
        told(order, &[Command::NoteRefund], at(2)).refund(),
        Refund::Done
    );
}

#[test]
fn a_capture_that_comes_after_the_cancellation_makes_a_refund_due() {
    let order = told(accepted(), &[Command::Expire, Command::NotePayment], at(60));
    assert_eq!(
        end(&order),
        (
            Status::Cancelled(CancelReason::TimedOut),
            Refund::Pending,
            true
        )
    );
}

#[test]
fn a_customer_may_cancel_twice_but_not_what_failed_by_itself() {
    let cancelled = told(accepted(), &[Command::Cancel], at(1));
    assert_eq!(decide(&cancelled, Command::Cancel, at(2)), Ok(None));
    let failed = told(accepted(), &[Command::FailPayment], at(1));
    let refusal = decide(&failed, Command::Cancel, at(2)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the order is already cancelled: payment_failed"
    );
}

#[test]
fn whatever_happens_a_cancelled_order_stays_cancelled_and_keeps_its_reason() {
    let cancelled = told(accepted(), &[Command::Reject], at(1));
    for command in COMMANDS {
        assert_eq!(
            told(cancelled.clone(), &[command], at(100)).status,
            cancelled.status,
            "{command:?}"
        );
    }
}

#[test]
fn contradictions_are_refused_and_name_both_sides() {
    let confirmed = told(accepted(), &[Command::NotePayment, Command::Confirm], at(1));
    for command in [Command::FailPayment, Command::Reject, Command::NoteRefund] {
        let refusal = decide(&confirmed, command, at(2)).unwrap_err().to_string();
        assert_eq!(
            refusal,
            format!("{command:?} contradicts an order that is Confirmed")
        );
    }
}

/// What the other services can truly say about one order, in the order in which they say it.
fn stories() -> impl Strategy<Value = Vec<Command>> {
    prop_oneof![
        Just(vec![Command::FailPayment]),
        Just(vec![Command::NotePayment, Command::Confirm]),
        Just(vec![
            Command::NotePayment,
            Command::Reject,
            Command::NoteRefund
        ]),
    ]
}

/// A story with repetitions, shuffled. The refund keeps its place after the rejection that caused
/// it: it answers an order.cancelled that only this service sends.
fn retellings() -> impl Strategy<Value = (Vec<Command>, Vec<Command>)> {
    (
        stories(),
        prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    )
        .prop_flat_map(|(story, repeats)| {
            let mut heard = story.clone();
            heard.extend(repeats.iter().map(|index| story[index.index(story.len())]));
            let refunds: Vec<Command> = heard
                .extract_if(.., |command| *command == Command::NoteRefund)
                .collect();
            Just(heard).prop_shuffle().prop_map(move |mut shuffled| {
                shuffled.extend(&refunds);
                (story.clone(), shuffled)
            })
        })
}

proptest! {
    #[test]
    fn any_order_and_any_duplication_of_what_is_heard_ends_the_same_way((story, heard) in retellings()) {
        let order = accepted();
        prop_assert_eq!(end(&told(order.clone(), &story, at(1))), end(&told(order, &heard, at(1))));
    }

    #[test]
    fn the_version_counts_the_events_and_no_order_is_both_confirmed_and_refunded(
        commands in prop::collection::vec(prop::sample::select(&COMMANDS[..]), 0..20)
    ) {
        let mut order = accepted();
        let mut events = 1;
        for command in commands {
            if let Ok(Some(event)) = decide(&order, command, at(100)) {
                events += 1;
                order = evolve(Some(order), &event, at(100)).unwrap();
            }
        }
        prop_assert_eq!(order.version, events);
        prop_assert!(!(order.status == Status::Confirmed && order.refunded));
    }
}
