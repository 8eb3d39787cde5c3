//! The `sagacity` command as a library, so that e2e uses the same client and the same auditor.

pub mod load;
pub mod measure;
pub mod order;
pub mod sqlx;
pub mod timeline;
pub mod up;
