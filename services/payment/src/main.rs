//! The payment service as a process.

fn main() -> std::process::ExitCode {
    payment::main()
}
