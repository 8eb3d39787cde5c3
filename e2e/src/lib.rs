//! The Shop harness and the end-to-end scenarios.
