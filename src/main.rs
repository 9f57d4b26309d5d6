//! `dormouse`: reads the command line, runs one command, and prints what went wrong as one chain.

mod api;
mod cli;
mod ctl;
mod doctor;
mod log_writer;
mod progress_bar;
mod report;
mod restore;
mod run;
mod serve;
mod snapshot;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    report::start_log(cli.log_level);
    let outcome = match cli.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Restore(arguments) => restore::restore(&arguments),
        Command::Serve(arguments) => serve::serve(&arguments),
        Command::Ctl(arguments) => ctl::ctl(&arguments),
        Command::Snapshot(command) => snapshot::snapshot(&command),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
    };
    let code = outcome.unwrap_or_else(|error| {
        report::print_chain(error.as_ref());
        ExitCode::FAILURE
    });
    report::finish();
    code
}
