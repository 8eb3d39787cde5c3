//! Domain events as contract events.

use contracts::Event as Contract;
use proto::inventory::v1 as wire;

use crate::domain::{Event, Reservation};

/// The contract event of a domain event that has led to `reservation`; `None` when other services
/// need not know.
pub fn to_contract(reservation: &Reservation, event: &Event) -> Option<Contract> {
    let order_id = reservation.order_id.to_string();
    match event {
        Event::Reserved { .. } => Some(Contract::InventoryReserved(wire::InventoryReserved {
            order_id,
        })),
        Event::Rejected { shortages, .. } => {
            Some(Contract::InventoryRejected(wire::InventoryRejected {
                order_id,
                short_skus: shortages.iter().map(ToString::to_string).collect(),
            }))
        }
        Event::Released { .. } => Some(Contract::InventoryReleased(wire::InventoryReleased {
            order_id,
        })),
        Event::CancelledFirst { .. } => None,
    }
}
