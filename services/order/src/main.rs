//! The order service as a process.

fn main() -> std::process::ExitCode {
    order::main()
}
