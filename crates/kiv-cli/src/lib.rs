//! The `kiv` program: reads flags, runs one command, prints the error once.
//!
//! Standard output carries data only (text, or JSON with `--json`); logs and
//! progress go to standard error. Exit codes: 0 done, 1 failed, 2 usage, 130
//! interrupted.

// First: the others use its macros.
#[macro_use]
mod output;

mod args;
mod bundled;
mod commands;
mod interrupt;
mod model;
mod template;

use args::Command;
use std::process::ExitCode;

/// Runs the program with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors; clap knows where each goes.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Context(args) => commands::context::run(&args),
        Command::Models(args) => commands::models::run(&args),
        Command::Serve(args) => commands::serve::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => ended(&error),
    }
}

/// Says why a command came to no end of its own.
fn ended(error: &anyhow::Error) -> ExitCode {
    let unwritten = error.downcast_ref::<output::Unwritten>();
    if unwritten.is_some_and(output::Unwritten::reader_is_gone) {
        // Whoever reads has enough: `kiv … | head`.
        return ExitCode::SUCCESS;
    }
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    if let Some(why) = causes.find(|e| matches!(e, kiv_runtime::Error::Interrupted { .. })) {
        note!("{why}");
        return ExitCode::from(130);
    }
    output::print_error(error);
    ExitCode::FAILURE
}
