//! Classifies database errors: whose fault is it, and does waiting help?

use std::{io, time::Duration};

use sqlx::error::{DatabaseError, ErrorKind};

/// How long a transaction may take. PostgreSQL ends a statement by itself; this ends one whose
/// server does not respond any more.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives a transaction up after [`TRANSACTION_TIMEOUT`], as one whose database is unavailable. A
/// commit may have been carried out all the same.
pub async fn in_time<T>(transaction: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let done = tokio::time::timeout(TRANSACTION_TIMEOUT, transaction).await;
    done.unwrap_or_else(|_elapsed| {
        let silent = io::Error::new(io::ErrorKind::TimedOut, "the database does not respond");
        Err(sqlx::Error::Io(silent).into())
    })
}

/// Whether an error is the database's and not the data's: the same transaction may succeed later.
///
/// Only data exceptions, violated constraints, exceptions raised by our own SQL and values that
/// cannot be read are the fault of an event. Everything else (a lock, a full disk, a wrong
/// password, a schema that is older or newer than the code) is the same for all events, and no
/// event is to blame for it.
pub(crate) fn is_databases_fault(error: &anyhow::Error) -> bool {
    sqlx_errors(error).any(|error| match error {
        sqlx::Error::Database(error) => {
            is_partition_change(&**error) || !error.code().is_some_and(|code| is_data_code(&code))
        }
        sqlx::Error::RowNotFound
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Encode(_) => false,
        _ => true,
    })
}

/// Whether another transaction has inserted the same row meanwhile. The next attempt finds it.
pub(crate) fn is_lost_race(error: &anyhow::Error) -> bool {
    sqlx_errors(error).any(|error| {
        let error = error.as_database_error();
        error.is_some_and(|error| error.is_unique_violation())
    })
}

/// Whether an error means that the database cannot serve anybody now. A commit that got no answer
/// may have been carried out: only what may be repeated is safe to retry.
pub fn is_unavailable(error: &anyhow::Error) -> bool {
    sqlx_errors(error).any(|error| match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        // The server has ended while it was asked for encryption.
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_unavailable_code(&code)),
        _ => false,
    })
}

fn sqlx_errors(error: &anyhow::Error) -> impl Iterator<Item = &sqlx::Error> {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<sqlx::Error>())
}

/// Whether a row waited for the default partition while one was made that it belongs to (see
/// `partitions`). PostgreSQL reports that the default partition's constraint is violated, which has
/// no name; those of our tables have one.
fn is_partition_change(error: &dyn DatabaseError) -> bool {
    error.kind() == ErrorKind::CheckViolation && error.constraint().is_none()
}

/// SQLSTATE (PostgreSQL manual, appendix A): data exception, integrity constraint violation, and an
/// exception raised by a function or trigger.
fn is_data_code(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("23") || code == "P0001"
}

/// SQLSTATE: connection exceptions, a rotated password, serialization failures and deadlocks,
/// insufficient resources, a lock or statement that took too long, shutdown and start-up, I/O
/// errors, a server that has become a read-only standby, and a transaction that was ended because
/// this process was paused.
fn is_unavailable_code(code: &str) -> bool {
    ["08", "28", "40", "53", "57", "58"]
        .iter()
        .any(|class| code.starts_with(class))
        || matches!(code, "55P03" | "25006" | "25P03")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_unavailability_and_a_broken_rule_is_not() {
        let timed_out = anyhow::Error::from(sqlx::Error::PoolTimedOut).context("loading orders");
        assert!(is_unavailable(&timed_out) && is_databases_fault(&timed_out));
        let not_found = anyhow::Error::from(sqlx::Error::RowNotFound);
        assert!(!is_unavailable(&not_found) && !is_databases_fault(&not_found));
        let own = anyhow::anyhow!("a rule is broken");
        assert!(!is_unavailable(&own) && !is_databases_fault(&own));
        for code in [
            "08006", "57P01", "53100", "55P03", "57014", "40P01", "28P01", "58030", "25P03",
        ] {
            assert!(is_unavailable_code(code) && !is_data_code(code), "{code}");
        }
        for code in ["22003", "23505", "P0001"] {
            assert!(is_data_code(code) && !is_unavailable_code(code), "{code}");
        }
        // A column that is missing: the event is not to blame, and the caller may not retry safely.
        assert!(!is_data_code("42703") && !is_unavailable_code("42703"));
    }
}
