//! The payment service provider's stand-in as a process.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bootstrap::process::main("psp-sandbox", payment::sandbox::run)
}
