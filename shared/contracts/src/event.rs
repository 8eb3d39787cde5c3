//! All events of the system as one closed enum, and their subjects.
//!
//! A subject is `<owner>.<fact>.v<major>`. A breaking change of an event is a new variant with a
//! new subject, published beside the old one; everything else must pass `buf breaking`.

use std::{fmt, str::FromStr};

use prost::Message;
use proto::{inventory::v1 as inventory, order::v1 as order, payment::v1 as payment};

use crate::choreography::Service;

/// What an event is about; its wire name is both the NATS subject and the CloudEvents type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// `order.created.v1`
    OrderCreated,
    /// `order.paid.v1`
    OrderPaid,
    /// `order.confirmed.v1`
    OrderConfirmed,
    /// `order.cancelled.v1`: the only compensation signal.
    OrderCancelled,
    /// `order.refunded.v1`
    OrderRefunded,
    /// `payment.completed.v1`
    PaymentCompleted,
    /// `payment.failed.v1`
    PaymentFailed,
    /// `payment.refunded.v1`
    PaymentRefunded,
    /// `inventory.reserved.v1`
    InventoryReserved,
    /// `inventory.rejected.v1`
    InventoryRejected,
    /// `inventory.released.v1`
    InventoryReleased,
}

impl Subject {
    /// Every subject, in the order of the saga.
    pub const ALL: [Self; 11] = [
        Self::OrderCreated,
        Self::OrderPaid,
        Self::OrderConfirmed,
        Self::OrderCancelled,
        Self::OrderRefunded,
        Self::PaymentCompleted,
        Self::PaymentFailed,
        Self::PaymentRefunded,
        Self::InventoryReserved,
        Self::InventoryRejected,
        Self::InventoryReleased,
    ];

    /// The wire name, for example `order.created.v1`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OrderCreated => "order.created.v1",
            Self::OrderPaid => "order.paid.v1",
            Self::OrderConfirmed => "order.confirmed.v1",
            Self::OrderCancelled => "order.cancelled.v1",
            Self::OrderRefunded => "order.refunded.v1",
            Self::PaymentCompleted => "payment.completed.v1",
            Self::PaymentFailed => "payment.failed.v1",
            Self::PaymentRefunded => "payment.refunded.v1",
            Self::InventoryReserved => "inventory.reserved.v1",
            Self::InventoryRejected => "inventory.rejected.v1",
            Self::InventoryReleased => "inventory.released.v1",
        }
    }

    /// The only service that publishes it.
    pub const fn owner(self) -> Service {
        match self {
            Self::OrderCreated
            | Self::OrderPaid
            | Self::OrderConfirmed
            | Self::OrderCancelled
            | Self::OrderRefunded => Service::Order,
            Self::PaymentCompleted | Self::PaymentFailed | Self::PaymentRefunded => {
                Service::Payment
            }
            Self::InventoryReserved | Self::InventoryRejected | Self::InventoryReleased => {
                Service::Inventory
            }
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Subject {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        Self::ALL
            .into_iter()
            .find(|subject| subject.as_str() == text)
            .ok_or_else(|| DecodeError::UnknownSubject(text.to_owned()))
    }
}

/// A fact that a service published.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "each variant is the message of the same name, documented in proto/"
)]
pub enum Event {
    OrderCreated(order::OrderCreated),
    OrderPaid(order::OrderPaid),
    OrderConfirmed(order::OrderConfirmed),
    OrderCancelled(order::OrderCancelled),
    OrderRefunded(order::OrderRefunded),
    PaymentCompleted(payment::PaymentCompleted),
    PaymentFailed(payment::PaymentFailed),
    PaymentRefunded(payment::PaymentRefunded),
    InventoryReserved(inventory::InventoryReserved),
    InventoryRejected(inventory::InventoryRejected),
    InventoryReleased(inventory::InventoryReleased),
}

/// Why bytes are not an event that we know. No retry mends any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Unknown fact or unknown major version.
    #[error("no event has the subject {0:?}")]
    UnknownSubject(String),
    /// The payload is not the protobuf message that the subject promises.
    #[error("the payload is no {subject} message: {reason}")]
    Malformed {
        /// What was promised.
        subject: Subject,
        /// What protobuf says.
        reason: String,
    },
    /// A field that every version carries is missing or unreadable.
    #[error("field {field}: {reason}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A known event that this service does not listen to.
    #[error("this service does not listen to {0}")]
    NotForUs(Subject),
}

impl Event {
    /// What this event is about.
    pub const fn subject(&self) -> Subject {
        match self {
            Self::OrderCreated(_) => Subject::OrderCreated,
            Self::OrderPaid(_) => Subject::OrderPaid,
            Self::OrderConfirmed(_) => Subject::OrderConfirmed,
            Self::OrderCancelled(_) => Subject::OrderCancelled,
            Self::OrderRefunded(_) => Subject::OrderRefunded,
            Self::PaymentCompleted(_) => Subject::PaymentCompleted,
            Self::PaymentFailed(_) => Subject::PaymentFailed,
            Self::PaymentRefunded(_) => Subject::PaymentRefunded,
            Self::InventoryReserved(_) => Subject::InventoryReserved,
            Self::InventoryRejected(_) => Subject::InventoryRejected,
            Self::InventoryReleased(_) => Subject::InventoryReleased,
        }
    }

    /// The protobuf payload.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::OrderCreated(event) => event.encode_to_vec(),
            Self::OrderPaid(event) => event.encode_to_vec(),
            Self::OrderConfirmed(event) => event.encode_to_vec(),
            Self::OrderCancelled(event) => event.encode_to_vec(),
            Self::OrderRefunded(event) => event.encode_to_vec(),
            Self::PaymentCompleted(event) => event.encode_to_vec(),
            Self::PaymentFailed(event) => event.encode_to_vec(),
            Self::PaymentRefunded(event) => event.encode_to_vec(),
            Self::InventoryReserved(event) => event.encode_to_vec(),
            Self::InventoryRejected(event) => event.encode_to_vec(),
            Self::InventoryReleased(event) => event.encode_to_vec(),
        }
    }

    /// Reads the payload that came on a subject.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] when the bytes are not that message.
    pub fn decode(subject: Subject, payload: &[u8]) -> Result<Self, DecodeError> {
        fn read<M: Message + Default>(
            payload: &[u8],
            into: fn(M) -> Event,
        ) -> Result<Event, prost::DecodeError> {
            M::decode(payload).map(into)
        }
        match subject {
            Subject::OrderCreated => read(payload, Self::OrderCreated),
            Subject::OrderPaid => read(payload, Self::OrderPaid),
            Subject::OrderConfirmed => read(payload, Self::OrderConfirmed),
            Subject::OrderCancelled => read(payload, Self::OrderCancelled),
            Subject::OrderRefunded => read(payload, Self::OrderRefunded),
            Subject::PaymentCompleted => read(payload, Self::PaymentCompleted),
            Subject::PaymentFailed => read(payload, Self::PaymentFailed),
            Subject::PaymentRefunded => read(payload, Self::PaymentRefunded),
            Subject::InventoryReserved => read(payload, Self::InventoryReserved),
            Subject::InventoryRejected => read(payload, Self::InventoryRejected),
            Subject::InventoryReleased => read(payload, Self::InventoryReleased),
        }
        .map_err(|error| DecodeError::Malformed {
            subject,
            reason: error.to_string(),
        })
    }
}

/// The events that one service listens to: a closed enum in its `saga.rs`, matched there without
/// `_`.
pub trait Inbound: Sized + Send + Sync + 'static {
    /// Whose choreography this is; consumers derive their filter subjects from it.
    const SERVICE: Service;

    /// Reads what the service needs from an event.
    ///
    /// # Errors
    /// [`DecodeError::NotForUs`] for an event that the service does not listen to,
    /// [`DecodeError::Field`] for a required field that is missing or unreadable.
    fn from_event(event: Event) -> Result<Self, DecodeError>;
}

/// Reads a text field of a message as what it should be, for example a typed id.
///
/// # Errors
/// [`DecodeError::Field`] that names the field.
pub fn parse_field<T: FromStr>(field: &'static str, text: &str) -> Result<T, DecodeError>
where
    T::Err: fmt::Display,
{
    text.parse().map_err(|error: T::Err| DecodeError::Field {
        field,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_reads_back_and_names_its_owner() {
        for subject in Subject::ALL {
            assert_eq!(subject.as_str().parse(), Ok(subject));
            assert!(
                subject.as_str().starts_with(subject.owner().name()),
                "{subject}"
            );
            let empty = Event::decode(subject, &[]).unwrap();
            assert_eq!(empty.subject(), subject);
            assert_eq!(Event::decode(subject, &empty.encode()), Ok(empty));
        }
    }

    #[test]
    fn an_unknown_version_and_a_broken_payload_are_errors_that_say_so() {
        assert_eq!(
            "order.created.v2"
                .parse::<Subject>()
                .unwrap_err()
                .to_string(),
            "no event has the subject \"order.created.v2\""
        );
        let error = Event::decode(Subject::OrderCreated, b"\xff\xff").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the payload is no order.created.v1 message"),
            "{error}"
        );
    }
}
