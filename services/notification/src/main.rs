//! The notification service as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::process::main("notification", notification::run)
}
