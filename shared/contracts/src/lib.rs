//! What the services agree on: typed ids, money, events with their subjects, the CloudEvents
//! headers, and the choreography, the table that says who reacts to which event with what.
//!
//! Read [`choreography`] first: the whole saga is on one screen there.
#![warn(missing_docs)]

pub mod choreography;
mod envelope;
mod event;
mod ids;
mod line;
mod money;

pub use envelope::{Envelope, EnvelopeError, header};
pub use event::{DecodeError, Event, Inbound, Subject, parse_field};
pub use ids::{CorrelationId, CustomerId, EventId, NotificationId, OrderId, PaymentId};
pub use line::OrderLine;
pub use money::{Money, MoneyError};
