//! What a reservation is and what may happen to it: pure functions, no clock, no database, no
//! network.
//!
//! All lines of an order are reserved or none. A cancellation may come before, between and after;
//! whatever the order, a cancelled order holds no stock.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Units of one product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Stock keeping unit.
    pub sku: String,
    /// How many.
    pub quantity: u32,
}

/// Where a reservation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every line is set aside for the order.
    Reserved,
    /// Stock ran short; nothing is set aside.
    Rejected,
    /// The order was cancelled; nothing is set aside (any more).
    Released,
}

/// What an order has of the stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Where it stands.
    pub status: Status,
    /// What was asked for; empty in a tombstone.
    pub lines: Vec<Line>,
}

/// What a reservation can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The order was paid.
    Reserve(Vec<Line>),
    /// The order was cancelled.
    Release,
}

/// What can happen to a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Every line is set aside.
    Reserved(Vec<Line>),
    /// Stock ran short.
    Rejected {
        /// What was asked for.
        lines: Vec<Line>,
        /// What there is too little of.
        short_skus: Vec<String>,
    },
    /// What was set aside is on hand again.
    Released(Vec<Line>),
    /// The cancellation came first; nothing will be set aside.
    Buried,
}

/// Units on hand by SKU; what is not in it does not exist.
pub type Stock = HashMap<String, i64>;

/// What happens when the reservation of an order is told `command` while `stock` is on hand.
pub fn decide(reservation: Option<&Reservation>, command: Command, stock: &Stock) -> Option<Event> {
    match (
        command,
        reservation.map(|reservation| (reservation.status, &reservation.lines)),
    ) {
        (Command::Reserve(lines), None) => Some(reserve(lines, stock)),
        (Command::Reserve(_), Some(_)) => None,
        (Command::Release, None) => Some(Event::Buried),
        (Command::Release, Some((Status::Reserved, lines))) => Some(Event::Released(lines.clone())),
        (Command::Release, Some((Status::Rejected | Status::Released, _))) => None,
    }
}

fn reserve(lines: Vec<Line>, stock: &Stock) -> Event {
    let enough = |line: &Line| {
        stock
            .get(&line.sku)
            .is_some_and(|on_hand| *on_hand >= i64::from(line.quantity))
    };
    let short_skus: Vec<String> = lines
        .iter()
        .filter(|line| !enough(line))
        .map(|line| line.sku.clone())
        .collect();
    if short_skus.is_empty() {
        Event::Reserved(lines)
    } else {
        Event::Rejected { lines, short_skus }
    }
}

/// What `event` makes of the reservation.
pub fn evolve(event: &Event) -> Reservation {
    match event {
        Event::Reserved(lines) => Reservation {
            status: Status::Reserved,
            lines: lines.clone(),
        },
        Event::Rejected { lines, .. } => Reservation {
            status: Status::Rejected,
            lines: lines.clone(),
        },
        Event::Released(lines) => Reservation {
            status: Status::Released,
            lines: lines.clone(),
        },
        Event::Buried => Reservation {
            status: Status::Released,
            lines: Vec::new(),
        },
    }
}

/// By how much `event` changes what is on hand.
pub fn movements(event: &Event) -> Vec<(&str, i64)> {
    match event {
        Event::Reserved(lines) => lines
            .iter()
            .map(|line| (line.sku.as_str(), -i64::from(line.quantity)))
            .collect(),
        Event::Released(lines) => lines
            .iter()
            .map(|line| (line.sku.as_str(), i64::from(line.quantity)))
            .collect(),
        Event::Rejected { .. } | Event::Buried => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
