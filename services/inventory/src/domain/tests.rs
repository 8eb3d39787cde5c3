//! Reserve and release in any order and any duplication, for orders that compete for stock.

use proptest::prelude::*;

use super::*;

fn line(sku: &str, quantity: u32) -> Line {
    Line {
        sku: sku.parse().unwrap(),
        quantity: quantity.try_into().unwrap(),
    }
}

fn stock(units: &[(&str, i64)]) -> Stock {
    let units = units
        .iter()
        .map(|(sku, units)| (sku.parse().unwrap(), *units));
    Stock::new(units.collect())
}

fn reserve(stock: &Stock, lines: &[Line]) -> Command {
    Command::Reserve {
        order_id: OrderId::new(),
        lines: lines.to_vec(),
        shortages: stock.shortages(lines),
    }
}

fn release() -> Command {
    Command::Release {
        order_id: OrderId::new(),
    }
}

/// The reservation after a command; the stock changes with it, as in the service.
fn after(
    reservation: Option<Reservation>,
    stock: &mut Stock,
    command: Command,
) -> Option<Reservation> {
    let Ok(events) = decide(reservation.as_ref(), command);
    events.iter().fold(reservation, |reservation, event| {
        stock.apply(event);
        evolve(reservation, event, OffsetDateTime::UNIX_EPOCH)
    })
}

#[test]
fn all_lines_are_reserved_or_none() {
    let mut on_hand = stock(&[("a", 5), ("b", 1)]);
    let both = [line("a", 5), line("b", 1)];
    let command = reserve(&on_hand, &both);
    let reserved = after(None, &mut on_hand, command).unwrap();
    assert_eq!(
        (reserved.status, &reserved.lines[..]),
        (Status::Reserved, &both[..])
    );
    let mut on_hand = stock(&[("a", 5), ("b", 1)]);
    let more = [line("a", 5), line("b", 2), line("unknown", 1)];
    let shortages = on_hand.shortages(&more);
    assert_eq!(
        shortages,
        ["b".parse().unwrap(), "unknown".parse().unwrap()]
    );
    let command = reserve(&on_hand, &more);
    let rejected = after(None, &mut on_hand, command).unwrap();
    assert_eq!(rejected.status, Status::Rejected);
    assert!(on_hand.changes().is_empty());
}

#[test]
fn a_cancellation_that_arrives_first_leaves_a_tombstone_and_nothing_is_reserved() {
    let mut on_hand = stock(&[("a", 5)]);
    let tombstone = after(None, &mut on_hand, release());
    let command = reserve(&on_hand, &[line("a", 1)]);
    let reservation = after(tombstone.clone(), &mut on_hand, command);
    assert_eq!(reservation, tombstone);
    assert_eq!(reservation.unwrap().status, Status::Released);
    assert_eq!(on_hand.on_hand(&"a".parse().unwrap()), 5);
}

proptest! {
    /// A paid and cancelled order, any number of times in any order, beside another order that
    /// wants the same stock.
    #[test]
    fn any_order_and_any_duplication_of_events_ends_the_same_way(
        delivered in prop::collection::vec((0_usize..2, any::<bool>()), 0..12),
        initial in 0_i64..4,
    ) {
        let mut on_hand = stock(&[("a", initial)]);
        let sku = "a".parse().unwrap();
        let mut reservations = [None, None];
        let all = [(0, false), (0, true), (1, false)];
        for (order, is_release) in delivered.into_iter().chain(all) {
            let command = if is_release && order == 0 {
                release()
            } else {
                reserve(&on_hand, &[line("a", 2)])
            };
            reservations[order] = after(reservations[order].take(), &mut on_hand, command);
            let reserved = |reservation: &&Reservation| reservation.status == Status::Reserved;
            let held = reservations.iter().flatten().filter(reserved).count() as i64 * 2;
            prop_assert_eq!(on_hand.on_hand(&sku) + held, initial);
            prop_assert!(on_hand.on_hand(&sku) >= 0);
        }
        // The cancelled order holds nothing, in whichever order its events arrived.
        prop_assert_ne!(reservations[0].as_ref().unwrap().status, Status::Reserved);
    }
}
