//! What a reservation is and what may happen to it: pure functions, no clock, no database, no
//! network.
//!
//! All lines of an order are reserved or none. A cancellation may arrive before, between and after
//! the other events; a cancelled order never holds stock.

mod stock;
#[cfg(test)]
mod tests;

use std::fmt;

use contracts::{OrderId, Quantity, Sku};
use time::OffsetDateTime;

pub use stock::Stock;

/// Units of one product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub sku: Sku,
    pub quantity: Quantity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every line is reserved.
    Reserved,
    /// Stock was short of a line; nothing is reserved.
    Rejected,
    /// The order was cancelled; nothing is reserved any more.
    Released,
}

/// The part of the stock that an order holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub order_id: OrderId,
    pub status: Status,
    /// What was requested; empty in a tombstone.
    pub lines: Vec<Line>,
    pub updated_at: OffsetDateTime,
}

/// Commands a reservation accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The order was paid.
    Reserve {
        order_id: OrderId,
        lines: Vec<Line>,
        /// Products of the lines of which too little is on hand: [`Stock::shortages`].
        shortages: Vec<Sku>,
    },
    /// The order was cancelled.
    Release { order_id: OrderId },
}

/// What can happen to a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Reserved {
        order_id: OrderId,
        lines: Vec<Line>,
    },
    Rejected {
        order_id: OrderId,
        lines: Vec<Line>,
        shortages: Vec<Sku>,
    },
    /// The lines are on hand again.
    Released {
        lines: Vec<Line>,
    },
    /// The order was cancelled before it was paid; nothing will be reserved.
    CancelledFirst {
        order_id: OrderId,
    },
}

/// A command that contradicts what has already happened. There is none: whatever arrives after the
/// first decision is late or repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTransition {}

/// What happens when `reservation` gets `command`; no event when nothing changes.
pub fn decide(
    reservation: Option<&Reservation>,
    command: Command,
) -> Result<Vec<Event>, InvalidTransition> {
    let Some(reservation) = reservation else {
        return Ok(vec![match command {
            Command::Release { order_id } => Event::CancelledFirst { order_id },
            Command::Reserve {
                order_id,
                lines,
                shortages,
            } if shortages.is_empty() => Event::Reserved { order_id, lines },
            Command::Reserve {
                order_id,
                lines,
                shortages,
            } => Event::Rejected {
                order_id,
                lines,
                shortages,
            },
        }]);
    };
    Ok(match (command, reservation.status) {
        // Redelivered, or after a cancellation that arrived first.
        (Command::Reserve { .. }, _) => vec![],
        (Command::Release { .. }, Status::Reserved) => vec![Event::Released {
            lines: reservation.lines.clone(),
        }],
        (Command::Release { .. }, Status::Rejected | Status::Released) => vec![],
    })
}

/// The reservation after `event`, which happened at `at`. `None` when the event does not fit: a
/// release needs a reservation.
pub fn evolve(
    reservation: Option<Reservation>,
    event: &Event,
    at: OffsetDateTime,
) -> Option<Reservation> {
    let new = |order_id: &OrderId, status, lines: &[Line]| Reservation {
        order_id: *order_id,
        status,
        lines: lines.to_vec(),
        updated_at: at,
    };
    match event {
        Event::Reserved { order_id, lines } => Some(new(order_id, Status::Reserved, lines)),
        Event::Rejected {
            order_id, lines, ..
        } => Some(new(order_id, Status::Rejected, lines)),
        Event::CancelledFirst { order_id } => Some(new(order_id, Status::Released, &[])),
        Event::Released { .. } => reservation.map(|reservation| Reservation {
            status: Status::Released,
            updated_at: at,
            ..reservation
        }),
    }
}

impl Status {
    pub const ALL: [Self; 3] = [Self::Reserved, Self::Rejected, Self::Released];

    /// As the database and the API spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Rejected => "rejected",
            Self::Released => "released",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
