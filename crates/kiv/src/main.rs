//! The `kiv` program.

fn main() -> std::process::ExitCode {
    kiv_cli::main()
}
