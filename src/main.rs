//! `dormouse`: reads the command line, runs one command, and prints what went wrong as one chain.

mod cli;
mod report;
mod run;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    report::start_log(cli.log_level);
    let outcome = match cli.command {
        Command::Run(arguments) => run::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            report::print_chain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}
