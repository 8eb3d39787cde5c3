//! The gateway service as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::process::main("gateway", gateway::run)
}
