use proptest::prelude::*;

use super::*;

fn line(sku: &str, quantity: u32) -> Line {
    Line {
        sku: sku.into(),
        quantity,
    }
}

fn stock(of: &[(&str, i64)]) -> Stock {
    of.iter()
        .map(|(sku, on_hand)| ((*sku).to_owned(), *on_hand))
        .collect()
}

/// Applies a command to a reservation and the stock, as the service does.
fn tell(reservation: &mut Option<Reservation>, stock: &mut Stock, command: Command) {
    if let Some(event) = decide(reservation.as_ref(), command, stock) {
        for (sku, by) in movements(&event) {
            *stock.get_mut(sku).unwrap() += by;
        }
        *reservation = Some(evolve(&event));
    }
}

#[test]
fn all_lines_are_reserved_or_none() {
    let on_hand = stock(&[("a", 5), ("b", 1)]);
    let both = vec![line("a", 5), line("b", 1)];
    assert_eq!(
        decide(None, Command::Reserve(both.clone()), &on_hand),
        Some(Event::Reserved(both))
    );
    let more = vec![line("a", 5), line("b", 2), line("unknown", 1)];
    let short_skus = vec!["b".to_owned(), "unknown".to_owned()];
    assert_eq!(
        decide(None, Command::Reserve(more.clone()), &on_hand),
        Some(Event::Rejected {
            lines: more,
            short_skus
        })
    );
}

#[test]
fn a_cancellation_that_comes_first_leaves_a_tombstone_and_nothing_is_reserved() {
    let (mut reservation, mut on_hand) = (None, stock(&[("a", 5)]));
    tell(&mut reservation, &mut on_hand, Command::Release);
    tell(
        &mut reservation,
        &mut on_hand,
        Command::Reserve(vec![line("a", 1)]),
    );
    assert_eq!(reservation.unwrap().status, Status::Released);
    assert_eq!(on_hand["a"], 5);
}

proptest! {
    /// A paid and cancelled order, any number of times in any order, beside another order that wants the same stock.
    #[test]
    fn any_order_and_any_duplication_ends_the_same_way(
        heard in proptest::collection::vec((0_usize..2, any::<bool>()), 0..12),
        initial in 0_i64..4,
    ) {
        let mut on_hand = stock(&[("a", initial)]);
        let mut reservations = [None, None];
        for (order, release) in heard.into_iter().chain([(0, false), (0, true), (1, false)]) {
            let command = if release && order == 0 { Command::Release } else { Command::Reserve(vec![line("a", 2)]) };
            tell(&mut reservations[order], &mut on_hand, command);
            let held: i64 = reservations.iter().flatten().filter(|r| r.status == Status::Reserved).map(|_| 2).sum();
            prop_assert_eq!(on_hand["a"] + held, initial);
            prop_assert!(on_hand["a"] >= 0);
        }
        // The cancelled order holds nothing, whatever came first.
        prop_assert_ne!(reservations[0].as_ref().unwrap().status, Status::Reserved);
    }
}
