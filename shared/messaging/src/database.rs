//! Classifies database errors: unavailable (wait and retry) or caused by the statement (count an
//! attempt).

/// Whether an error means that the database is unavailable, restarting or out of connections. Waiting
/// helps then.
pub fn is_unavailable(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<sqlx::Error>())
        .any(|error| match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => {
                error.code().is_some_and(|code| is_unavailable_code(&code))
            }
            _ => false,
        })
}

/// SQLSTATE (PostgreSQL manual, appendix A): connection exceptions, too many connections, shutdown
/// and start-up, and a server that has become a read-only standby.
fn is_unavailable_code(code: &str) -> bool {
    code.starts_with("08") || matches!(code, "53300" | "57P01" | "57P02" | "57P03" | "25006")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_unavailability_and_a_broken_rule_is_not() {
        assert!(is_unavailable(
            &anyhow::Error::from(sqlx::Error::PoolTimedOut).context("loading orders")
        ));
        assert!(!is_unavailable(&anyhow::Error::from(
            sqlx::Error::RowNotFound
        )));
        assert!(is_unavailable_code("08006") && is_unavailable_code("57P01"));
        assert!(!is_unavailable_code("23505") && !is_unavailable_code("40P01"));
    }
}
