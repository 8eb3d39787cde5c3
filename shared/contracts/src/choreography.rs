//! The whole saga as a table: which service reacts to which event, and what it may publish then.
//!
//! This is a declaration, not an engine. Four things bind it to the code:
//! 1. consumers derive their filter subjects from it ([`subscriptions`]);
//! 2. each service's inbound events are a closed enum, and a test in each service compares that
//!    enum with the table ([`mismatches`]);
//! 3. `docs/saga.md` is rendered from it, and a test fails when the file is stale;
//! 4. the end-to-end suite reads the streams and fails on a (cause, event) pair that is not in the
//!    table, and after the last scenario on an edge that never occurred.

use crate::{
    DecodeError, Event, Inbound,
    Service::{self, Inventory, Notification, Order, Payment},
    Subject::{self, *},
};

/// One reaction of one service to one event.
#[derive(Debug)]
pub struct Edge {
    /// The event that triggers the reaction.
    pub on: Subject,
    /// The service that reacts.
    pub by: Service,
    /// What the service does, for people.
    pub does: &'static str,
    /// What the service may publish then: at most one of these per order.
    pub emits: &'static [Subject],
    /// Whether this undoes an earlier step.
    pub compensation: bool,
}

/// A trigger that is not an event: a request of a customer, or time.
#[derive(Debug)]
pub struct Command {
    /// What happens, for people.
    pub name: &'static str,
    /// The service that carries it out.
    pub by: Service,
    /// What the service publishes then.
    pub emits: Subject,
}

/// What starts a saga, or changes its course from outside.
pub const COMMANDS: &[Command] = &[
    command("customer orders", Order, OrderCreated),
    command("customer cancels", Order, OrderCancelled),
    command("deadline passes", Order, OrderCancelled),
];

/// The choreography.
#[rustfmt::skip]
pub const EDGES: &[Edge] = &[
    // Forward.
    step(OrderCreated,      Payment,      "charge",              &[PaymentCompleted, PaymentFailed]),
    step(PaymentCompleted,  Order,        "mark as paid",        &[OrderPaid]),
    step(PaymentCompleted,  Inventory,    "reserve",             &[InventoryReserved, InventoryRejected]),
    step(InventoryReserved, Order,        "confirm",             &[OrderConfirmed]),
    step(OrderConfirmed,    Notification, "notify the customer", &[]),
    // Failure: every failure ends in order.cancelled ...
    step(PaymentFailed,     Order,        "cancel",              &[OrderCancelled]),
    step(InventoryRejected, Order,        "cancel",              &[OrderCancelled]),
    // ... which is the only signal to undo.
    undo(OrderCancelled,    Payment,      "void or refund",      &[PaymentRefunded]),
    undo(OrderCancelled,    Inventory,    "release",             &[InventoryReleased]),
    undo(PaymentRefunded,   Order,        "record the refund",   &[OrderRefunded]),
    step(OrderCancelled,    Notification, "notify the customer", &[]),
    step(PaymentRefunded,   Notification, "notify the customer", &[]),
];

const fn command(name: &'static str, by: Service, emits: Subject) -> Command {
    Command { name, by, emits }
}

const fn step(on: Subject, by: Service, does: &'static str, emits: &'static [Subject]) -> Edge {
    let compensation = false;
    Edge {
        on,
        by,
        does,
        emits,
        compensation,
    }
}

const fn undo(on: Subject, by: Service, does: &'static str, emits: &'static [Subject]) -> Edge {
    let compensation = true;
    Edge {
        on,
        by,
        does,
        emits,
        compensation,
    }
}

/// The subjects that `service` subscribes to among those that `owner` publishes.
pub fn subscriptions(service: Service, owner: Service) -> Vec<Subject> {
    let edges = EDGES.iter().filter(|edge| edge.by == service);
    let subjects = edges.map(|edge| edge.on);
    subjects
        .filter(|subject| subject.owner() == owner)
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

/// The subjects on which a service's inbound enum and the table disagree: handled but not declared,
/// or declared but not handled. Each service asserts that there are none.
pub fn mismatches<I: Inbound>() -> Vec<Subject> {
    let declared = |subject: Subject| subscriptions(I::SERVICE, subject.owner()).contains(&subject);
    // An empty message is enough: whether an event is handled is decided before its fields are
    // read.
    let handled = |subject| match Event::decode(subject, &[]).map(I::from_event) {
        Ok(Err(DecodeError::NotSubscribed(_))) => false,
        Ok(_) | Err(_) => true,
    };
    let all = Subject::ALL.into_iter();
    all.filter(|subject| declared(*subject) != handled(*subject))
        .collect()
}
