//! `cargo xtask bench`: the table of performance figures, with medians, beside QEMU's microvm where that is meaningful.
//!
//! Everything runs the bare-metal guest of `resources/guest` on this host's `/dev/kvm`. A figure that cannot be
//! measured says why.

mod contender;
mod process_memory;
mod sleep;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::bench::contender::Contender;
use crate::error::Error;
use crate::workspace::Workspace;

/// How the figures are taken.
#[derive(clap::Args)]
pub struct Options {
    /// Runs per figure; the table shows medians.
    #[arg(long, default_value_t = 21)]
    runs: usize,
    /// Measure this binary instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Why a figure has no value for QEMU.
const NO_CONTENDER: &str = "microvm has nothing to compare with: it cannot be saved";

/// One line of the table.
struct Figure {
    what: &'static str,
    target: &'static str,
    dormouse: Value,
    qemu: Value,
}

/// A figure's value for one of the two.
enum Value {
    /// A median with its unit.
    Median(f64, &'static str),
    /// Why there is none.
    NotAvailable(String),
}

/// Takes the figures and prints the table.
pub fn run(options: &Options, workspace: &Workspace) -> Result<ExitCode, Error> {
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => workspace.build_dormouse()?,
    };
    let guest = dormouse_tests::guest::build()?.pvh;
    let scratch = workspace.lab();
    std::fs::create_dir_all(&scratch).map_err(Error::file("create", &scratch))?;
    let mut slept = sleep::figures(&binary, &guest, &scratch, options.runs.min(7));
    let dormouse = Contender::Dormouse { binary };
    let qemu = Contender::QemuMicrovm;
    let mut figures = vec![
        Figure {
            what: "process start to first guest output, 512 MiB VM",
            target: "<= 4 ms",
            dormouse: start::first_output(&dormouse, &guest, options.runs),
            qemu: start::first_output(&qemu, &guest, options.runs),
        },
        Figure {
            what: "memory of the VMM beyond guest RAM (PSS)",
            target: "<= 3 MiB",
            dormouse: start::memory(&dormouse, &guest, options.runs),
            qemu: start::memory(&qemu, &guest, options.runs),
        },
    ];
    figures.append(&mut slept);
    print_table(&figures, options.runs);
    Ok(ExitCode::SUCCESS)
}

fn print_table(figures: &[Figure], runs: usize) {
    println!(
        "{:50} {:>10} {:>14} {:>14}",
        format!("median of {runs} runs"),
        "target",
        "dormouse",
        "QEMU microvm"
    );
    let mut notes: Vec<String> = Vec::new();
    for figure in figures {
        let cells: Vec<String> = [&figure.dormouse, &figure.qemu]
            .map(|value| cell(value, &mut notes))
            .into();
        println!(
            "{:50} {:>10} {:>14} {:>14}",
            figure.what, figure.target, cells[0], cells[1]
        );
    }
    for (index, note) in notes.iter().enumerate() {
        println!("[{}] {note}", index + 1);
    }
}

fn cell(value: &Value, notes: &mut Vec<String>) -> String {
    match value {
        Value::Median(number, unit) => format!("{number:.2} {unit}"),
        Value::NotAvailable(reason) => {
            let known = notes
                .iter()
                .position(|note| note == reason)
                .unwrap_or_else(|| {
                    notes.push(reason.clone());
                    notes.len() - 1
                });
            format!("n/a [{}]", known + 1)
        }
    }
}

/// The median of what `sample` yields, or the first reason why it yields nothing.
fn median(
    runs: usize,
    unit: &'static str,
    mut sample: impl FnMut() -> Result<f64, String>,
) -> Value {
    let mut samples = Vec::with_capacity(runs);
    for _ in 0..runs.max(1) {
        match sample() {
            Ok(value) => samples.push(value),
            Err(reason) => return Value::NotAvailable(reason),
        }
    }
    median_of(samples, unit)
}

/// The median of samples, of which there is at least one.
fn median_of(mut samples: Vec<f64>, unit: &'static str) -> Value {
    samples.sort_by(f64::total_cmp);
    Value::Median(samples[samples.len() / 2], unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_and_a_failure_has_its_reason() {
        let mut values = [5.0, 1.0, 100.0].into_iter();
        let middle = median(3, "ms", || values.next().ok_or_else(String::new));
        assert!(matches!(middle, Value::Median(value, "ms") if value == 5.0));
        let none = median(3, "ms", || Err("no KVM".to_string()));
        assert!(matches!(none, Value::NotAvailable(reason) if reason == "no KVM"));
    }
}
