//! `cargo xtask test`: everything that says whether the checkout is good, in one run.
//!
//! Style, fuzz targets, documentation, all cargo tests, then the lab. A failed step does not stop the following ones. The last line
//! is `N passed, N failed` over steps and tests, with `, N skipped` when something could not run here.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use crate::error::Error;
use crate::lab::{self, Selection, Verdict};
use crate::process;
use crate::workspace::Workspace;

/// How much is run.
#[derive(clap::Args)]
pub struct Options {
    /// Without the lab, the documentation and the fuzz targets.
    #[arg(long)]
    quick: bool,
    /// Also the long lab tests and those on the iommufd kernel.
    #[arg(long)]
    full: bool,
    /// Multiplies every deadline of the lab: for a busy machine.
    #[arg(long, default_value_t = 3.0)]
    patience: f64,
}

/// How many steps and tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// What has been run so far.
#[derive(Default)]
struct Report {
    total: Tally,
    lines: Vec<String>,
}

impl Report {
    fn add(&mut self, name: &str, start: Instant, tally: Tally) {
        self.total.passed += tally.passed;
        self.total.failed += tally.failed;
        self.total.skipped += tally.skipped;
        let word = if tally.failed == 0 { "ok" } else { "FAILED" };
        let skipped = if tally.skipped == 0 {
            String::new()
        } else {
            format!(", {} not run", tally.skipped)
        };
        self.lines.push(format!(
            "  {name:14} {word:7} {} passed, {} failed{skipped} ({:.0} s)",
            tally.passed,
            tally.failed,
            start.elapsed().as_secs_f64()
        ));
    }

    fn step(&mut self, name: &str, command: &mut Command) {
        println!("=== {name}");
        let start = Instant::now();
        let tally = match process::run_visibly(command) {
            Ok(()) => Tally {
                passed: 1,
                ..Tally::default()
            },
            Err(error) => {
                crate::error::print_chain(&error);
                Tally {
                    failed: 1,
                    ..Tally::default()
                }
            }
        };
        self.add(name, start, tally);
    }
}

/// Runs everything and prints the summary.
pub fn run(options: &Options, workspace: &Workspace) -> Result<ExitCode, Error> {
    let mut report = Report::default();
    report.step(
        "format",
        workspace.cargo().args(["fmt", "--all", "--check"]),
    );
    let clippy = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    report.step("clippy", workspace.cargo().args(clippy));
    if !options.quick {
        // A workspace of their own, which nothing else compiles.
        let fuzz = [
            "clippy",
            "--quiet",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--",
            "-D",
            "warnings",
        ];
        report.step("fuzz targets", workspace.cargo().args(fuzz));
        let doc = ["doc", "--quiet", "--no-deps", "--workspace"];
        report.step(
            "documentation",
            workspace
                .cargo()
                .args(doc)
                .env("RUSTDOCFLAGS", "-Dwarnings"),
        );
    }
    cargo_tests(workspace, &mut report)?;
    if !options.quick {
        lab_tests(options, workspace, &mut report);
    }

    println!("\n=== summary");
    report.lines.iter().for_each(|line| println!("{line}"));
    let Tally {
        passed,
        failed,
        skipped,
    } = report.total;
    let skipped = if skipped == 0 {
        String::new()
    } else {
        format!(", {skipped} skipped")
    };
    println!("{passed} passed, {failed} failed{skipped}");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs `cargo test`, passes its output on and adds up its result lines.
fn cargo_tests(workspace: &Workspace, report: &mut Report) -> Result<(), Error> {
    println!("=== cargo test");
    let start = Instant::now();
    let lab = workspace.lab();
    fs::create_dir_all(&lab).map_err(Error::file("create", &lab))?;
    let log = lab.join("not-run.log");
    fs::write(&log, "").map_err(Error::file("write", &log))?;

    let mut cargo = workspace.cargo();
    cargo
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("DORMOUSE_NOT_RUN_LOG", &log);
    cargo.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = cargo
        .spawn()
        .map_err(|source| process::start_error(&cargo, source))?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        // A test may print bytes that are no text.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            println!("{line}");
            add_result_line(&line, &mut tally);
        }
    }
    let status = child
        .wait()
        .map_err(|source| process::start_error(&cargo, source))?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test program died.
        tally.failed = 1;
    }
    let not_run = print_not_run(&log)?;
    tally.passed = tally.passed.saturating_sub(not_run);
    tally.skipped += not_run;
    report.add("cargo test", start, tally);
    Ok(())
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn add_result_line(line: &str, tally: &mut Tally) {
    let Some(result) = line.strip_prefix("test result: ") else {
        return;
    };
    for part in result.split(['.', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (
            words.next().and_then(|word| word.parse::<u64>().ok()),
            words.next(),
        ) else {
            continue;
        };
        match what {
            "passed" => tally.passed += number,
            "failed" => tally.failed += number,
            "ignored" => tally.skipped += number,
            _ => {}
        }
    }
}

/// Tests that this host cannot run return normally and leave a line `name<TAB>reason` in the log.
fn print_not_run(log: &Path) -> Result<u64, Error> {
    let text = fs::read_to_string(log).map_err(Error::file("read", log))?;
    for line in text.lines() {
        println!("not run: {}", line.replace('\t', ": "));
    }
    Ok(text.lines().count() as u64)
}

fn lab_tests(options: &Options, workspace: &Workspace, report: &mut Report) {
    println!("=== lab");
    let start = Instant::now();
    let selection = Selection {
        full: options.full,
        jobs: 1,
        patience: options.patience,
        ..Selection::default()
    };
    let mut tally = Tally::default();
    match lab::run_suite(workspace, &selection) {
        Ok(outcomes) => {
            lab::print_summary(&outcomes);
            for outcome in outcomes {
                match outcome.verdict {
                    Verdict::Pass => tally.passed += 1,
                    Verdict::Fail(_) => tally.failed += 1,
                    Verdict::NotRun(_) => tally.skipped += 1,
                }
            }
        }
        Err(error) => {
            crate::error::print_chain(&error);
            tally.failed += 1;
        }
    }
    report.add("lab", start, tally);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_cargo_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.52s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
        ] {
            add_result_line(line, &mut tally);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 7,
                failed: 2,
                skipped: 1
            }
        );
    }
}
