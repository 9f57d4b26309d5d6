//! `dormouse doctor`: is this host, and which of its devices, ready for passthrough and for sleep?
//!
//! `facts` asks the host, `advice` says what to do about what it answered, `text` shows both to people. Nothing is changed: the only
//! thing done to a device is to open one that is bound to a VFIO driver and free, and that can be left out.

mod advice;
mod classes;
mod facts;
#[cfg(test)]
mod tests;
mod text;
mod variant;

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::DoctorArguments;
use advice::Advice;
use facts::Facts;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    /// Nothing needs action.
    ready: bool,
    problems: &'a [Advice],
    notes: &'a [Advice],
    #[serde(flatten)]
    facts: &'a Facts,
}

/// Runs the command: exit code 0 when nothing needs action, else 1.
pub fn doctor(arguments: &DoctorArguments) -> Result<ExitCode, Box<dyn Error>> {
    let facts = Facts::gather(!arguments.no_probe);
    let (problems, notes) = (advice::problems(&facts), advice::notes(&facts));
    let report = if arguments.json {
        let report = Report {
            ready: problems.is_empty(),
            problems: &problems,
            notes: &notes,
            facts: &facts,
        };
        let mut json = serde_json::to_string_pretty(&report)?;
        json.push('\n');
        json
    } else {
        text::describe(&facts, &problems, &notes)
    };
    io::stdout().lock().write_all(report.as_bytes())?;
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
