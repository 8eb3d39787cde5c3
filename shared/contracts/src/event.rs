//! All events of the system as one closed enum, and their subjects.
//!
//! A subject is `<owner>.<fact>.v<major>`. A breaking change of an event is a new line in the table
//! below with a new subject, published in its place when every subscriber knows it; every other
//! change must pass `buf breaking`.

use std::{fmt, str::FromStr, time::SystemTime};

use prost::Message;
use proto::{inventory::v1 as inventory, order::v1 as order, payment::v1 as payment};
use time::OffsetDateTime;

use crate::{CustomerId, Money, OrderId, OrderLine, PaymentMethod, Service};

/// Declares [`Subject`] and [`Event`] from one table, so that a new event is one line.
macro_rules! events {
    ($($name:ident => $subject:literal, $owner:ident, $payload:ty;)+) => {
        /// The kind of an event. Its text is both the NATS subject and the CloudEvents type.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Subject {
            $(#[doc = concat!("`", $subject, "`")] $name,)+
        }

        impl Subject {
            /// Every subject, in the order of the table.
            pub const ALL: [Self; [$($subject),+].len()] = [$(Self::$name),+];

            /// The text, for example `order.created.v1`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $subject,)+ }
            }

            /// The only service that publishes it.
            pub const fn owner(self) -> Service {
                match self { $(Self::$name => Service::$owner,)+ }
            }
        }

        /// An event with its payload.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Event {
            $(#[doc = concat!("`", $subject, "`")] $name($payload),)+
        }

        impl Event {
            /// The kind of this event.
            pub const fn subject(&self) -> Subject {
                match self { $(Self::$name(_) => Subject::$name,)+ }
            }

            /// The payload as published: a protobuf message.
            pub fn encode(&self) -> Vec<u8> {
                match self { $(Self::$name(payload) => payload.encode_to_vec(),)+ }
            }

            /// Reads a payload that arrived with a subject.
            ///
            /// # Errors
            /// [`DecodeError::Malformed`] when the bytes are not that message.
            pub fn decode(subject: Subject, payload: &[u8]) -> Result<Self, DecodeError> {
                match subject {
                    $(Subject::$name => <$payload>::decode(payload).map(Self::$name),)+
                }
                .map_err(|error| DecodeError::Malformed { subject, reason: error.to_string() })
            }
        }
    };
}

events! {
    OrderCreated      => "order.created.v1",      Order,     order::OrderCreated;
    OrderPaid         => "order.paid.v1",         Order,     order::OrderPaid;
    OrderConfirmed    => "order.confirmed.v1",    Order,     order::OrderConfirmed;
    OrderCancelled    => "order.cancelled.v1",    Order,     order::OrderCancelled;
    OrderRefunded     => "order.refunded.v1",     Order,     order::OrderRefunded;
    PaymentCompleted  => "payment.completed.v1",  Payment,   payment::PaymentCompleted;
    PaymentFailed     => "payment.failed.v1",     Payment,   payment::PaymentFailed;
    PaymentRefunded   => "payment.refunded.v1",   Payment,   payment::PaymentRefunded;
    InventoryReserved => "inventory.reserved.v1", Inventory, inventory::InventoryReserved;
    InventoryRejected => "inventory.rejected.v1", Inventory, inventory::InventoryRejected;
    InventoryReleased => "inventory.released.v1", Inventory, inventory::InventoryReleased;
}

impl Event {
    /// Replaces the customer of the order and forgets the payment method: all that an event says
    /// about a person. False when it has neither.
    pub fn erase_customer(&mut self, order: OrderId) -> bool {
        let customer = match self {
            // Every field is named, so that a new one is thought about.
            Self::OrderCreated(order::OrderCreated {
                order_id: _,
                customer_id,
                lines: _,
                total: _,
                payment_method,
                deadline: _,
            }) => {
                PaymentMethod::FORGOTTEN.clone_into(payment_method);
                customer_id
            }
            Self::OrderConfirmed(order::OrderConfirmed {
                order_id: _,
                customer_id,
                total: _,
            }) => customer_id,
            Self::OrderCancelled(order::OrderCancelled {
                order_id: _,
                customer_id,
                reason: _,
            }) => customer_id,
            Self::PaymentRefunded(payment::PaymentRefunded {
                order_id: _,
                payment_id: _,
                amount: _,
                customer_id,
            }) => customer_id,
            Self::OrderPaid(_)
            | Self::OrderRefunded(_)
            | Self::PaymentCompleted(_)
            | Self::PaymentFailed(_)
            | Self::InventoryReserved(_)
            | Self::InventoryRejected(_)
            | Self::InventoryReleased(_) => return false,
        };
        *customer = CustomerId::erased(order).to_string();
        true
    }

    /// Forgets the payment method. False when the event has none, or it was forgotten before.
    pub fn forget_payment_method(&mut self) -> bool {
        match self {
            Self::OrderCreated(created) if created.payment_method != PaymentMethod::FORGOTTEN => {
                PaymentMethod::FORGOTTEN.clone_into(&mut created.payment_method);
                true
            }
            _ => false,
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
        let known = Self::ALL
            .into_iter()
            .find(|subject| subject.as_str() == text);
        known.ok_or_else(|| DecodeError::UnknownSubject(text.to_owned()))
    }
}

/// Why an event cannot be read. A retry cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No event has this subject; perhaps a later version of the system publishes it.
    #[error("no event has the subject {0:?}")]
    UnknownSubject(String),
    /// The payload is not the message that its subject promises.
    #[error("the payload is not a message of {subject}: {reason}")]
    Malformed {
        /// The subject it arrived with.
        subject: Subject,
        /// What the protobuf decoder reports.
        reason: String,
    },
    /// A field is missing or cannot be read.
    #[error("{field}: {reason}")]
    Field {
        /// The field or header.
        field: &'static str,
        /// What was expected.
        reason: String,
    },
    /// The service does not subscribe to this event.
    #[error("this service does not handle {0}")]
    NotSubscribed(Subject),
}

impl DecodeError {
    /// A required field that the message does not have.
    pub fn missing(field: &'static str) -> Self {
        Self::Field {
            field,
            reason: "it is missing".to_owned(),
        }
    }

    /// A field whose value breaks a rule.
    pub fn invalid(field: &'static str, reason: impl fmt::Display) -> Self {
        Self::Field {
            field,
            reason: reason.to_string(),
        }
    }
}

/// The events that one service handles: a closed enum in its `saga.rs`, matched there without `_`.
pub trait Inbound: Sized + Send + Sync + 'static {
    /// The service; its consumers derive their filter subjects from the choreography.
    const SERVICE: Service;

    /// Reads what the service needs from an event.
    ///
    /// # Errors
    /// [`DecodeError::NotSubscribed`] for an event that the service does not handle,
    /// [`DecodeError::Field`] for a required field that is missing or invalid.
    fn from_event(event: Event) -> Result<Self, DecodeError>;
}

/// Reads a text field, for example as a typed id.
///
/// # Errors
/// [`DecodeError::Field`] that names the field.
pub fn parse_field<T: FromStr>(field: &'static str, text: &str) -> Result<T, DecodeError>
where
    T::Err: fmt::Display,
{
    text.parse()
        .map_err(|error: T::Err| DecodeError::invalid(field, error))
}

/// Reads a required amount.
///
/// # Errors
/// [`DecodeError::Field`] that names the field.
pub fn parse_money(
    field: &'static str,
    money: Option<proto::common::v1::Money>,
) -> Result<Money, DecodeError> {
    let money = money.ok_or_else(|| DecodeError::missing(field))?;
    money
        .try_into()
        .map_err(|error| DecodeError::invalid(field, error))
}

/// Reads a required time.
///
/// # Errors
/// [`DecodeError::Field`] that names the field.
pub fn parse_time(
    field: &'static str,
    time: Option<prost_types::Timestamp>,
) -> Result<OffsetDateTime, DecodeError> {
    let time = time.ok_or_else(|| DecodeError::missing(field))?;
    let time = SystemTime::try_from(time);
    let time = time.map_err(|error| DecodeError::invalid(field, error))?;
    Ok(time.into())
}

/// Reads the lines of an order.
///
/// # Errors
/// [`DecodeError::Field`] that names the field of the line.
pub fn parse_lines(
    lines: Vec<proto::common::v1::OrderLine>,
) -> Result<Vec<OrderLine>, DecodeError> {
    lines.into_iter().map(OrderLine::try_from).collect()
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
    fn an_unknown_version_and_a_malformed_payload_are_named() {
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
                .starts_with("the payload is not a message of order.created.v1"),
            "{error}"
        );
    }
}
