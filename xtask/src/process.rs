//! Running other programs as steps of a task.
//!
//! A step either succeeds or is an [`Error`] that shows the command and the end of what it printed.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::Error;

/// Runs a step quietly; what it printed appears only when it fails. Returns its standard output.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let output = capture(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(Error::Step {
        command: describe(command),
        status: output.status,
        output: text,
    })
}

/// Runs a step whose output the person at the terminal should see as it comes.
pub fn run_visibly(command: &mut Command) -> Result<(), Error> {
    let status = command
        .status()
        .map_err(|source| start_error(command, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Step {
        command: describe(command),
        status,
        output: String::new(),
    })
}

/// Runs a program to its end and returns whatever it did, failure included.
pub fn capture(command: &mut Command) -> Result<Output, Error> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| start_error(command, source))
}

/// Is the program somewhere in `PATH`, or in the directories of system programs?
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| is_program(&directory.join(program)))
}

fn is_program(path: &Path) -> bool {
    path.is_file()
}

/// The error for a program that could not be started.
pub fn start_error(command: &Command, source: std::io::Error) -> Error {
    Error::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
