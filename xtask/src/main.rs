//! The project's own tasks: `cargo xtask <verb>`.
//!
//! One file per verb. Nothing here is part of Dormouse itself: these verbs build it, run it on real kernels
//! in the lab, measure it, and show it to people. `.ci/run` is `cargo xtask test`.

mod bench;
mod demo;
mod error;
mod fuzz;
mod lab;
mod process;
mod stamp;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::workspace::Workspace;

/// Tasks of the Dormouse workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Real kernels, real KVM and real VFIO drivers under emulation.
    #[command(subcommand)]
    Lab(lab::Verb),
    /// Everything: style, documentation, all tests, the lab.
    Test(test::Options),
    /// Performance figures beside QEMU's.
    Bench(bench::Options),
    /// Random input, guided by coverage, for everything that reads foreign bytes.
    Fuzz(fuzz::Options),
    /// The main job on real Linux, told step by step.
    Demo(demo::Options),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    match Workspace::locate().and_then(|workspace| run(verb, &workspace)) {
        Ok(code) => code,
        Err(error) => {
            error::print_chain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb, workspace: &Workspace) -> Result<ExitCode, Error> {
    match verb {
        Verb::Lab(verb) => lab::run(verb, workspace),
        Verb::Test(options) => test::run(&options, workspace),
        Verb::Bench(options) => bench::run(&options, workspace),
        Verb::Fuzz(options) => fuzz::run(&options, workspace),
        Verb::Demo(options) => demo::run(&options, workspace),
    }
}
