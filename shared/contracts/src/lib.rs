//! What the services agree on: typed ids and values, events with their subjects, and the
//! choreography: the table that states which service reacts to which event, and how.
//!
//! Read [`choreography`] first: the whole saga is on one screen there.
#![warn(missing_docs, unreachable_pub)]

mod cause;
pub mod choreography;
pub mod dead_letter;
mod envelope;
mod event;
mod ids;
mod line;
mod money;
pub mod rpc;
mod service;
mod value;

pub use cause::{Cause, trace_id};
pub use envelope::{Envelope, header};
pub use event::{
    DecodeError, Event, Inbound, Subject, parse_field, parse_lines, parse_money, parse_time,
};
pub use ids::{CorrelationId, CustomerId, EventId, NotificationId, OrderId, PaymentId};
pub use line::OrderLine;
pub use money::{Currency, Money, MoneyError};
pub use service::Service;
pub use value::{IdempotencyKey, InvalidValue, MAX_TEXT, PaymentMethod, Quantity, Sku};
