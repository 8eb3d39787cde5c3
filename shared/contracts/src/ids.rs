//! The registry of typed ids: an [`OrderId`] cannot be passed where a [`PaymentId`] is expected.
//!
//! All are UUIDs; new ones are UUIDv7 (RFC 9562), so that they sort by time and indexes
//! grow at one end.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id that sorts after all earlier ids of this process.
            #[expect(clippy::new_without_default, reason = "a fresh id is not a default value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

typed_id!(
    /// An order.
    OrderId
);
typed_id!(
    /// A customer.
    CustomerId
);
typed_id!(
    /// A payment; also the idempotency key of its charge at the provider.
    PaymentId
);
typed_id!(
    /// A notification to a customer.
    NotificationId
);
typed_id!(
    /// An event, or a command in the place of a causing event.
    EventId
);
typed_id!(
    /// One request of a customer and everything that follows from it.
    CorrelationId
);

impl CustomerId {
    /// What replaces a customer who was erased: the id of the order, which names nobody,
    /// and does not tell which orders were of the same customer.
    pub const fn erased(order: OrderId) -> Self {
        Self(order.0)
    }
}
