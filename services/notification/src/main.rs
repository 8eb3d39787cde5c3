//! The notification service as a process.

fn main() -> std::process::ExitCode {
    notification::main()
}
