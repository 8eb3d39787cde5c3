//! The order service as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::process::main("order", order::run)
}
