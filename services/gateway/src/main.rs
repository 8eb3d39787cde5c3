//! The gateway as a process.

fn main() -> std::process::ExitCode {
    gateway::main()
}
