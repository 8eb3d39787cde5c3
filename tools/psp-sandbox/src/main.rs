//! The sandbox provider as a process.

fn main() -> std::process::ExitCode {
    psp_sandbox::main()
}
