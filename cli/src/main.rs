//! The `sagacity` command.
fn main() {}
