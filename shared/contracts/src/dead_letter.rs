//! Dead letters as services and operators' tools know them: streams, subjects and headers.

/// The stream of dead letters; their subjects are `dlq.<service>.<subject of the event>`.
pub const STREAM: &str = "DEAD_LETTER";
/// The stream of events on their way back to the service that gave up; their subjects are
/// `redrive.<service>.<subject of the event>`.
pub const REDRIVE: &str = "REDRIVE";
/// The stream of what operators did with dead letters, one JSON document per act.
pub const AUDIT: &str = "AUDIT";
/// The subject of the acts.
pub const AUDIT_SUBJECT: &str = "audit.dead_letters";

/// Headers that a dead letter has in addition to those of the event.
pub mod header {
    /// What the names of all of them begin with.
    pub const PREFIX: &str = "dead-letter-";
    /// The service that gave up.
    pub const SERVICE: &str = "dead-letter-service";
    /// The error with its causes.
    pub const REASON: &str = "dead-letter-reason";
    /// Failed attempts.
    pub const ATTEMPTS: &str = "dead-letter-attempts";
    /// The stream that the event came from.
    pub const STREAM: &str = "dead-letter-stream";
    /// Its sequence there.
    pub const SEQUENCE: &str = "dead-letter-sequence";
    /// How often an operator had sent the event back before; absent when never.
    pub const REDRIVES: &str = "dead-letter-redrives";
    /// Length of a payload that was too large to keep, in bytes. The event itself is still in its
    /// stream.
    pub const TRUNCATED: &str = "dead-letter-truncated";
}
