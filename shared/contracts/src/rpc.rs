//! Who may call what: every RPC of the system and its callers.
//!
//! Services enforce it where they know their callers by certificates.

use crate::Service;

/// A process that calls services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The gateway.
    Gateway,
    /// A service.
    Service(Service),
}

impl Caller {
    /// The name of the process, and of its certificate.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Service(service) => service.name(),
        }
    }
}

const GATEWAY: &[Caller] = &[Caller::Gateway];
const ORDER: &[Caller] = &[Caller::Service(Service::Order)];

/// The path of each RPC, and who may call it.
pub const RPCS: &[(&str, &[Caller])] = &[
    ("/sagacity.order.v1.OrderService/CreateOrder", GATEWAY),
    ("/sagacity.order.v1.OrderService/GetOrder", GATEWAY),
    ("/sagacity.order.v1.OrderService/ListOrders", GATEWAY),
    ("/sagacity.order.v1.OrderService/CancelOrder", GATEWAY),
    ("/sagacity.payment.v1.PaymentService/GetPayment", GATEWAY),
    (
        "/sagacity.inventory.v1.InventoryService/ListProducts",
        GATEWAY,
    ),
    (
        "/sagacity.inventory.v1.InventoryService/GetProduct",
        GATEWAY,
    ),
    (
        "/sagacity.inventory.v1.InventoryService/GetReservation",
        GATEWAY,
    ),
    ("/sagacity.inventory.v1.InventoryService/GetPrices", ORDER),
    (
        "/sagacity.notification.v1.NotificationService/ListNotifications",
        GATEWAY,
    ),
    ("/sagacity.eventlog.v1.EventLogService/ListEvents", GATEWAY),
];

/// Who may call an RPC; nobody, if it is not in the table.
pub fn callers(path: &str) -> &'static [Caller] {
    let found = RPCS.iter().find(|(rpc, _)| *rpc == path);
    found.map_or(&[], |(_, callers)| callers)
}
