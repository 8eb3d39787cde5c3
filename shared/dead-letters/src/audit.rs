//! The audit: what operators did, one JSON document per line.

use anyhow::Context as _;
use async_nats::{HeaderMap, jetstream};
use contracts::dead_letter::{AUDIT, AUDIT_SUBJECT};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::DeadLetters;

impl DeadLetters {
    /// Writes a line of the audit, and adds the time to it. An act has a line before it and one
    /// after it, each with `by`, `act` and `outcome`: one that fails, or that a crash cuts short,
    /// does not read as done.
    ///
    /// # Errors
    /// When the broker does not have the line: then the act must not begin.
    pub async fn audit(&self, mut line: Value) -> anyhow::Result<()> {
        line["at"] = OffsetDateTime::now_utc().format(&Rfc3339)?.into();
        let (subject, line) = (AUDIT_SUBJECT.to_owned(), line.to_string().into_bytes());
        publish(&self.jetstream, subject, HeaderMap::new(), line)
            .await
            .with_context(|| format!("publish to the stream {AUDIT}"))
    }
}

/// The end of an act that was done, from whether the audit has its last line.
///
/// # Errors
/// When it has not.
pub fn done(recorded: anyhow::Result<()>) -> anyhow::Result<()> {
    recorded.context("it is done, but the audit does not show that it has ended")
}

/// Why an act has failed, and whether the audit has its last line.
pub fn failed(error: anyhow::Error, recorded: anyhow::Result<()>) -> anyhow::Error {
    match recorded {
        Ok(()) => error,
        Err(audit) => error.context(format!("not in the audit: {audit:#}")),
    }
}

pub(crate) async fn publish(
    jetstream: &jetstream::Context,
    subject: String,
    headers: HeaderMap,
    payload: Vec<u8>,
) -> anyhow::Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a redriven event was in the outbox already, and an audit line is no event"
    )]
    let published = jetstream.publish_with_headers(subject, headers, payload.into());
    published.await?.await?;
    Ok(())
}
