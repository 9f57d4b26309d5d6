//! `cargo xtask fuzz [TARGET]`: coverage-guided fuzzing of everything that reads foreign bytes.
//!
//! The targets are a workspace of their own in `fuzz/`, built by cargo-fuzz, which is installed into the checkout's
//! `target`. Instrumented code takes switches of the compiler that are not stable: with a nightly compiler they may be used, and the
//! stable one is told to allow them. One target runs after the other, from its seeds and from what earlier runs on this machine
//! have found. An input that breaks something is kept in `fuzz/artifacts/`.

use std::fs;
use std::process::{Command, ExitCode};

use crate::error::Error;
use crate::process;
use crate::workspace::Workspace;

/// Longest time for one input, in seconds; the slowest take some milliseconds.
const TIMEOUT_SECONDS: u32 = 10;

/// What is run, and for how long.
#[derive(clap::Args)]
pub struct Options {
    /// The target; all of them if none is named
    #[arg(value_enum)]
    target: Option<Target>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// The programs in `fuzz/fuzz_targets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    /// Bodies of API requests
    ApiRequest,
    /// Capability lists of foreign devices
    CapabilityWalk,
    /// VM configs in files
    ConfigFile,
    /// VM configs over HTTP
    ConfigHttp,
    /// Kernel images
    KernelImage,
    /// The MSI-X table, also from foreign snapshots
    MsixTable,
    /// Accesses to an emulated PCI function
    PciConfigSpace,
    /// Accesses to the shadow of a foreign device
    PciDeviceShadow,
    /// Manifests of snapshots
    SnapshotManifest,
}

impl Target {
    fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Runs the targets; the first finding ends the run.
pub fn run(options: &Options, workspace: &Workspace) -> Result<ExitCode, Error> {
    let tools = workspace.target().join("tools");
    if !tools.join("bin/cargo-fuzz").exists() {
        println!("fuzz: installing cargo-fuzz into {}", tools.display());
        let mut install = workspace.cargo();
        install.args(["install", "--quiet", "--locked", "cargo-fuzz", "--root"]);
        process::run_visibly(install.arg(&tools))?;
    }
    let targets = match &options.target {
        Some(target) => std::slice::from_ref(target),
        None => clap::ValueEnum::value_variants(),
    };
    for target in targets {
        fuzz(&target.name(), options.seconds, workspace)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fuzz(target: &str, seconds: u32, workspace: &Workspace) -> Result<(), Error> {
    println!("=== fuzz {target} for {seconds} s");
    let fuzz = workspace.root().join("fuzz");
    let corpus = fuzz.join("corpus").join(target);
    fs::create_dir_all(&corpus).map_err(Error::file("create", &corpus))?;
    // What is new goes to the first directory, so the seeds stay as they are.
    let mut cargo = cargo_fuzz(workspace);
    cargo
        .args(["fuzz", "run", "--target-dir"])
        .arg(workspace.target().join("fuzz"))
        .arg(target)
        .args([corpus, fuzz.join("seeds").join(target)])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={TIMEOUT_SECONDS}"));
    process::run_visibly(&mut cargo)
}

/// A cargo that finds cargo-fuzz and whose compiler takes the switches it needs.
fn cargo_fuzz(workspace: &Workspace) -> Command {
    let mut command = if has_nightly() {
        // This program was started by another cargo, which says so in variables that rustup replaces.
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo"]);
        command
    } else {
        let mut command = workspace.cargo();
        command.env("RUSTC_BOOTSTRAP", "1");
        command
    };
    let mut path = workspace.target().join("tools/bin").into_os_string();
    if let Some(inherited) = std::env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    command.current_dir(workspace.root()).env("PATH", path);
    command
}

/// Looks without starting a nightly program, which rustup might answer by installing one.
fn has_nightly() -> bool {
    process::run(Command::new("rustup").args(["toolchain", "list"])).is_ok_and(|list| {
        list.lines()
            .any(|toolchain| toolchain.starts_with("nightly-"))
    })
}

#[cfg(test)]
mod tests {
    use super::Target;
    use clap::ValueEnum;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_target_can_be_named_and_has_seeds() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let programs: BTreeSet<_> = std::fs::read_dir(fuzz.join("fuzz_targets"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let names: BTreeSet<_> = Target::value_variants().iter().map(|t| t.name()).collect();
        assert_eq!(names, programs);
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        for name in names {
            assert!(
                manifest.contains(&format!("name = \"{name}\"\n")),
                "{name} is not built"
            );
            let seeds = std::fs::read_dir(fuzz.join("seeds").join(&name));
            assert!(
                seeds.is_ok_and(|mut seeds| seeds.next().is_some()),
                "{name} has no seeds"
            );
        }
    }
}
