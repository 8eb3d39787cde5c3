//! The services that take part in the saga.

use std::fmt;

/// A participant of the saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Owns orders and their deadlines.
    Order,
    /// Charges and refunds orders.
    Payment,
    /// Reserves and releases stock.
    Inventory,
    /// Notifies customers of outcomes.
    Notification,
}

impl Service {
    /// All participants. The compiler asks for a new one's arm in each method; the architecture
    /// test asks for its entry here.
    pub const ALL: [Self; 4] = [
        Self::Order,
        Self::Payment,
        Self::Inventory,
        Self::Notification,
    ];

    /// Lower-case name: of the process, the database, the durable consumers, and the first part of
    /// the subjects.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Payment => "payment",
            Self::Inventory => "inventory",
            Self::Notification => "notification",
        }
    }

    /// The JetStream stream that holds the service's events; `None` for a service that publishes
    /// nothing.
    pub const fn stream(self) -> Option<&'static str> {
        match self {
            Self::Order => Some("ORDER"),
            Self::Payment => Some("PAYMENT"),
            Self::Inventory => Some("INVENTORY"),
            Self::Notification => None,
        }
    }

    /// The CloudEvents `source` of the service's events: a URI reference.
    pub fn source(self) -> String {
        format!("/sagacity/{self}")
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
