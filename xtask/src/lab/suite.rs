//! Which tests run, on what, in which order, and the summary at the end.

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::error::{self, Error};
use crate::lab::assets::Assets;
use crate::lab::binary;
use crate::lab::iommufd_kernel::IommufdKernel;
use crate::lab::runner::{Bench, Verdict};
use crate::lab::scenario::{self, Scenario};
use crate::workspace::Workspace;

/// The tests to run and how.
#[derive(Args, Default)]
pub struct Selection {
    /// Names of tests; none means all.
    pub names: Vec<String>,
    /// Also the tests that are too long for every run, and those on the iommufd kernel.
    #[arg(long)]
    pub full: bool,
    /// Test this binary instead of building one.
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// How many tests run at a time; each keeps two cores busy.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Multiplies every deadline: for a busy machine.
    #[arg(long, default_value_t = 1.0)]
    pub patience: f64,
}

/// How one test ended and how long it took.
pub struct Outcome {
    /// The test's name.
    pub name: String,
    /// Its verdict.
    pub verdict: Verdict,
    /// From packing L1 to the end of QEMU.
    pub time: Duration,
}

/// Runs the selected tests and returns how they ended, by name.
pub fn run_suite(workspace: &Workspace, selection: &Selection) -> Result<Vec<Outcome>, Error> {
    let sources = workspace.lab_sources();
    let scenarios = select(scenario::all(&sources.join("tests"))?, selection)?;
    let assets = Assets::prepare(workspace)?;
    let needs_second = scenarios
        .iter()
        .any(|scenario| scenario.kernel == scenario::KernelKind::Iommufd);
    let second = if needs_second {
        Some(IommufdKernel::prepare(&assets, &sources)?)
    } else {
        None
    };
    let binary = match &selection.binary {
        Some(binary) => binary.clone(),
        None => binary::build(workspace)?,
    };
    let bench = Bench {
        assets: &assets,
        iommufd: second.as_ref(),
        sources: &sources,
        binary: Some(&binary),
        patience: selection.patience.max(1.0),
        narrate: None,
    };
    let waiting = Mutex::new(scenarios.into_iter());
    let outcomes = Mutex::new(Vec::new());
    let worker = || {
        while let Some(scenario) = next(&waiting) {
            let outcome = run_one(&bench, &scenario);
            print_outcome(&outcome);
            outcomes
                .lock()
                .expect("no thread panics while it holds this")
                .push(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..selection.jobs.max(1) {
            scope.spawn(worker);
        }
    });
    let mut outcomes = outcomes
        .into_inner()
        .expect("no thread panics while it holds this");
    outcomes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(outcomes)
}

fn next(waiting: &Mutex<std::vec::IntoIter<Scenario>>) -> Option<Scenario> {
    waiting
        .lock()
        .expect("no thread panics while it holds this")
        .next()
}

fn run_one(bench: &Bench<'_>, scenario: &Scenario) -> Outcome {
    let start = Instant::now();
    let verdict = bench.run(scenario).unwrap_or_else(|error| {
        error::print_chain(&error);
        Verdict::Fail(error.to_string())
    });
    Outcome {
        name: scenario.name.clone(),
        verdict,
        time: start.elapsed(),
    }
}

/// All tests that were named; without names all that run every time, and with `--full` the others too.
fn select(all: Vec<Scenario>, selection: &Selection) -> Result<Vec<Scenario>, Error> {
    for name in &selection.names {
        if !all.iter().any(|scenario| scenario.name == *name) {
            let known: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
            return Err(Error::UnknownTest {
                name: name.clone(),
                known: known.join(", "),
            });
        }
    }
    let wanted = |scenario: &Scenario| {
        if selection.names.is_empty() {
            selection.full || !scenario.only_in_full()
        } else {
            selection.names.contains(&scenario.name)
        }
    };
    Ok(all.into_iter().filter(wanted).collect())
}

fn print_outcome(outcome: &Outcome) {
    let (word, reason) = match &outcome.verdict {
        Verdict::Pass => ("pass", ""),
        Verdict::Fail(reason) => ("FAIL", reason.as_str()),
        Verdict::NotRun(reason) => ("not run", reason.as_str()),
    };
    let separator = if reason.is_empty() { "" } else { ": " };
    println!(
        "lab: {:20} {word} ({:.0} s){separator}{reason}",
        outcome.name,
        outcome.time.as_secs_f64()
    );
}

/// Prints how many tests ended how, and again the reasons of those that did not pass.
pub fn print_summary(outcomes: &[Outcome]) {
    let count = |wanted: fn(&Verdict) -> bool| {
        outcomes
            .iter()
            .filter(|outcome| wanted(&outcome.verdict))
            .count()
    };
    println!();
    for outcome in outcomes
        .iter()
        .filter(|outcome| outcome.verdict != Verdict::Pass)
    {
        print_outcome(outcome);
    }
    println!(
        "lab: {} passed, {} failed, {} not run",
        count(|verdict| *verdict == Verdict::Pass),
        count(|verdict| matches!(verdict, Verdict::Fail(_))),
        count(|verdict| matches!(verdict, Verdict::NotRun(_))),
    );
}
