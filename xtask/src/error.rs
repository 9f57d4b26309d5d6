//! Why a task could not be done.
//!
//! A variant names the operation; the chain is printed once, by `main`.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// A task's failure. Failed tests are not errors: they are counted and shown in a summary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program of a step is not there or may not be run.
    #[error("cannot start `{program}`; is it installed?")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// A step's program ran and failed.
    #[error("`{command}` ended with {status}{}", indent(.output))]
    Step {
        command: String,
        status: ExitStatus,
        output: String,
    },
    /// A file operation of a step failed.
    #[error("cannot {action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The machine has no apt sources that a distribution's kernel can come from.
    #[error(
        "apt on this machine names no package source of Debian or Ubuntu; the lab takes its kernel from there"
    )]
    NoSources,
    /// No suite offers a kernel that is new enough.
    #[error(
        "no suite of this distribution offers a full linux-image of version 6.7 or newer for amd64"
    )]
    NoKernel,
    /// A package came without a file that the lab needs.
    #[error("{what} is not in {}", .searched.display())]
    Missing { what: String, searched: PathBuf },
    /// The file is not a kernel image this reader understands.
    #[error("{} is not a bzImage with a payload that can be unpacked: {reason}", .path.display())]
    NotABzImage { path: PathBuf, reason: &'static str },
    /// A package is missing on the machine and may not be installed by this user.
    #[error(
        "the machine lacks {packages}; install it, or run this as root so that it can be installed"
    )]
    NeedsRoot { packages: String },
    /// The bare-metal guest could not be built.
    #[error("cannot build the bare-metal guest")]
    BuildGuest(#[from] dormouse_tests::guest::Error),
    /// A name on the command line is no test.
    #[error("there is no lab test `{name}`; there are: {known}")]
    UnknownTest { name: String, known: String },
    /// A test's header could not be understood.
    #[error("{} line {line}: {reason}", .path.display())]
    Header {
        path: PathBuf,
        line: usize,
        reason: String,
    },
}

impl Error {
    /// Maps an I/O error of `action` on `path`.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::File {
            action,
            path,
            source,
        }
    }
}

/// Prints what was attempted and the reasons below it, outermost first.
pub fn print_chain(error: &Error) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(reason) = cause {
        eprintln!("  because: {reason}");
        cause = reason.source();
    }
}

fn indent(output: &str) -> String {
    if output.trim().is_empty() {
        return String::new();
    }
    let lines: Vec<&str> = output.trim_end().lines().collect();
    let first = lines.len().saturating_sub(15);
    lines[first..]
        .iter()
        .fold(":".to_string(), |text, line| text + "\n    " + line)
}
