//! The payment service provider's stand-in as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    bootstrap::process::main("psp-sandbox", psp_sandbox::run)
}
