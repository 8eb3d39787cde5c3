//! Whose fault a database error is: the database's (then we wait) or the statement's (then the
//! message is to blame).

/// Whether an error says that the database is away, restarting or full of connections. Waiting
/// mends these.
pub(crate) fn is_unavailable(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<sqlx::Error>())
        .any(|error| match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => error
                .code()
                .is_some_and(|code| code_says_unavailable(&code)),
            _ => false,
        })
}

/// SQLSTATE (PostgreSQL manual, appendix A): connection exceptions, too many connections, shutdown
/// and start-up, and a server that has become a read-only standby.
fn code_says_unavailable(code: &str) -> bool {
    code.starts_with("08") || matches!(code, "53300" | "57P01" | "57P02" | "57P03" | "25006")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_the_databases_fault_and_a_broken_rule_is_not() {
        assert!(is_unavailable(
            &anyhow::Error::from(sqlx::Error::PoolTimedOut).context("loading orders")
        ));
        assert!(!is_unavailable(&anyhow::Error::from(
            sqlx::Error::RowNotFound
        )));
        assert!(code_says_unavailable("08006") && code_says_unavailable("57P01"));
        assert!(!code_says_unavailable("23505") && !code_says_unavailable("40P01"));
    }
}
