//! The inventory service as a process.

fn main() -> std::process::ExitCode {
    inventory::main()
}
