//! The payment service as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::process::main("payment", payment::run)
}
