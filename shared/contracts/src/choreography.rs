//! The whole saga as a table: on which event, which service does what, and what it says then.
//!
//! This is a declaration, not an engine. Four things bind it to the code:
//! 1. consumers derive their filter subjects from it ([`listens_to`]);
//! 2. each service's inbound events are a closed enum, matched without `_` ([`crate::Inbound`]);
//! 3. `docs/saga.md` is rendered from it, and a test fails when the file is stale;
//! 4. the e2e harness taps the streams and fails on a (cause, event) pair that is not here, and at
//!    the end of the suite on an edge that was never seen.

use std::fmt;

use crate::Subject::{self, *};

/// The services that take part in the saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Owns orders.
    Order,
    /// Owns payments.
    Payment,
    /// Owns stock.
    Inventory,
    /// Tells customers.
    Notification,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Order,
        Self::Payment,
        Self::Inventory,
        Self::Notification,
    ];

    /// Lower-case name: of the process, the database, the durable consumers, and the first part of
    /// its subjects.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Payment => "payment",
            Self::Inventory => "inventory",
            Self::Notification => "notification",
        }
    }

    /// The CloudEvents source of its events.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Order => "/sagacity/order",
            Self::Payment => "/sagacity/payment",
            Self::Inventory => "/sagacity/inventory",
            Self::Notification => "/sagacity/notification",
        }
    }

    /// The JetStream stream that holds its events; `None` for a service that publishes nothing.
    pub const fn stream(self) -> Option<&'static str> {
        match self {
            Self::Order => Some("ORDER"),
            Self::Payment => Some("PAYMENT"),
            Self::Inventory => Some("INVENTORY"),
            Self::Notification => None,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One reaction of one service to one event.
#[derive(Debug)]
pub struct Edge {
    /// The event that is reacted to.
    pub on: Subject,
    /// Who reacts.
    pub by: Service,
    /// What is done.
    pub does: &'static str,
    /// What may be said then; at most one of these per order.
    pub emits: &'static [Subject],
    /// True when this undoes something.
    pub compensation: bool,
}

/// A command that starts something: no event causes it.
#[derive(Debug)]
pub struct Command {
    /// What it is called.
    pub name: &'static str,
    /// Who carries it out.
    pub by: Service,
    /// What is said then.
    pub emits: Subject,
}

/// Where stories begin, and where the world outside interferes.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "customer orders",
        by: Service::Order,
        emits: OrderCreated,
    },
    Command {
        name: "customer cancels",
        by: Service::Order,
        emits: OrderCancelled,
    },
    Command {
        name: "deadline passes",
        by: Service::Order,
        emits: OrderCancelled,
    },
];

/// The choreography.
pub const EDGES: &[Edge] = &[
    // Forward
    does(
        OrderCreated,
        Service::Payment,
        "charge",
        &[PaymentCompleted, PaymentFailed],
    ),
    does(PaymentCompleted, Service::Order, "mark paid", &[OrderPaid]),
    does(
        PaymentCompleted,
        Service::Inventory,
        "reserve",
        &[InventoryReserved, InventoryRejected],
    ),
    does(
        InventoryReserved,
        Service::Order,
        "confirm",
        &[OrderConfirmed],
    ),
    does(
        OrderConfirmed,
        Service::Notification,
        "tell the customer",
        &[],
    ),
    // Failure: whatever goes wrong ends in order.cancelled ...
    does(PaymentFailed, Service::Order, "cancel", &[OrderCancelled]),
    does(
        InventoryRejected,
        Service::Order,
        "cancel",
        &[OrderCancelled],
    ),
    // ... which is the only signal to undo.
    undoes(
        OrderCancelled,
        Service::Payment,
        "void or refund",
        &[PaymentRefunded],
    ),
    undoes(
        OrderCancelled,
        Service::Inventory,
        "release",
        &[InventoryReleased],
    ),
    undoes(
        PaymentRefunded,
        Service::Order,
        "note the refund",
        &[OrderRefunded],
    ),
    does(
        OrderCancelled,
        Service::Notification,
        "tell the customer",
        &[],
    ),
    does(
        PaymentRefunded,
        Service::Notification,
        "tell the customer",
        &[],
    ),
];

const fn does(on: Subject, by: Service, does: &'static str, emits: &'static [Subject]) -> Edge {
    Edge {
        on,
        by,
        does,
        emits,
        compensation: false,
    }
}

const fn undoes(on: Subject, by: Service, does: &'static str, emits: &'static [Subject]) -> Edge {
    Edge {
        on,
        by,
        does,
        emits,
        compensation: true,
    }
}

/// The subjects that `service` listens to among those that `owner` publishes.
pub fn listens_to(service: Service, owner: Service) -> Vec<Subject> {
    EDGES
        .iter()
        .filter(|edge| edge.by == service && edge.on.owner() == owner)
        .map(|edge| edge.on)
        .collect()
}

/// Whether `event` may follow from `cause`; `None` stands for a command.
pub fn allows(cause: Option<Subject>, event: Subject) -> bool {
    match cause {
        Some(cause) => EDGES
            .iter()
            .any(|edge| edge.on == cause && edge.emits.contains(&event)),
        None => COMMANDS.iter().any(|command| command.emits == event),
    }
}
