//! Errors at the gRPC boundary, in one place.
//!
//! | error | status | log |
//! |---|---|---|
//! | a request breaks a rule | `INVALID_ARGUMENT`, `field: what is expected` | none |
//! | the database is unavailable | `UNAVAILABLE`, a retry is safe | warn |
//! | anything else | `INTERNAL`, never called safe to retry | error, with its causes |

use std::{fmt::Display, str::FromStr};

use prost_types::Timestamp;
use time::OffsetDateTime;
use tonic::Status;

/// The status of an unexpected error.
pub fn from_error(error: impl Into<anyhow::Error>) -> Status {
    let error: anyhow::Error = error.into();
    if messaging::is_unavailable(&error) {
        tracing::warn!(
            error = format!("{error:#}"),
            "the database is unavailable; the call fails, its caller may retry"
        );
        return Status::unavailable("the database is unavailable; a retry is safe");
    }
    tracing::error!(
        error = format!("{error:#}"),
        "a call failed unexpectedly; its caller gets INTERNAL"
    );
    Status::internal("unexpected error; the log of the service has the details")
}

/// The status of a field that breaks a rule.
pub fn invalid(field: impl Display, reason: impl Display) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

/// Reads a field that holds an id.
///
/// # Errors
/// `INVALID_ARGUMENT` that names the field.
pub fn parse_id<T: FromStr>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|_| invalid(field, "expected a UUID"))
}

/// The number of rows to return for a requested limit: 1 to 100.
pub fn page_size(limit: u32) -> usize {
    limit.clamp(1, 100) as usize
}

/// Cuts rows to a page. The caller has queried one row more than [`page_size`]; the result tells
/// whether there is a next page.
pub fn cut_to_page<T>(rows: &mut Vec<T>, size: usize) -> bool {
    let has_next = rows.len() > size;
    rows.truncate(size);
    has_next
}

/// A time as protobuf messages carry it.
pub fn timestamp(time: OffsetDateTime) -> Timestamp {
    Timestamp::from(std::time::SystemTime::from(time))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn only_an_unavailable_database_is_safe_to_retry() {
        let unavailable = from_error(sqlx::Error::PoolTimedOut);
        assert_eq!(unavailable.code(), Code::Unavailable);
        assert!(unavailable.message().contains("a retry is safe"));
        for error in [
            sqlx::Error::RowNotFound,
            sqlx::Error::Decode("a column of another type".into()),
        ] {
            let status = from_error(error);
            assert_eq!(status.code(), Code::Internal);
            assert!(!status.message().contains("retry"), "{status}");
        }
    }

    #[test]
    fn a_page_has_a_next_one_when_there_are_more_rows() {
        let mut rows = vec![1, 2, 3];
        assert!(cut_to_page(&mut rows, 2));
        assert_eq!(rows, [1, 2]);
        assert!(!cut_to_page(&mut rows, 2));
        assert_eq!((page_size(0), page_size(1000)), (1, 100));
    }
}
