//! The harness of the end-to-end scenarios: a whole system per scenario, in processes or in
//! containers, audited when it closes.

pub mod chaos;
mod command;
mod compose;
mod deployment;
mod edges;
mod harness;
mod kubernetes;
mod shop;

pub use compose::{Compose, docker};
pub use deployment::Deployment;
pub use devstack::test::{read_stream, wait_for};
pub use edges::{Pair, expected_pairs};
pub use harness::Harness;
pub use kubernetes::Kubernetes;
pub use shop::Shop;
