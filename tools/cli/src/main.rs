//! The `sagacity` command.

fn main() -> std::process::ExitCode {
    cli::main()
}
