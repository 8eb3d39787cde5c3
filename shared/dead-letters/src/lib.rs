//! Dead letters as operators see them: what there is, and what may be done with it.
//!
//! `messaging` writes dead letters and applies what is redriven.
#![warn(missing_docs, unreachable_pub)]

mod act;
pub mod audit;
mod letters;

use std::time::Duration;

use async_nats::{HeaderMap, jetstream::stream::RawMessageErrorKind};
use contracts::dead_letter::header;

pub use act::{Act, Summary, Task};
pub use letters::{DeadLetters, Filter, FullLetter, Letter};

/// Bytes kept of an oversized payload.
pub const KEPT_BYTES: usize = 256 * 1024;
/// How long the broker may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// There is no message with this sequence.
const NOT_FOUND: RawMessageErrorKind = RawMessageErrorKind::NoMessageFound;

/// Whether a header belongs to a message in one stream, and not to the event.
pub fn is_about_delivery(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("nats-") || name.starts_with(header::PREFIX)
}

/// The value of a header as text; `None` when it is absent.
fn text<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Option<&'a str> {
    headers?.get(name).map(|value| value.as_str())
}
