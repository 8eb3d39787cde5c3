//! The inventory service as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::process::main("inventory", inventory::run)
}
