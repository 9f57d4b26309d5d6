//! `cargo xtask demo`: the main job on real Linux, told step by step, with nothing prepared by hand.
//!
//! Where the host's KVM boots stock Linux, the story runs there; else in the lab's nested form. The same script tells
//! both: `resources/lab/demo.sh`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::lab::{Assets, Bench, Running, Scenario, Verdict};
use crate::process;
use crate::workspace::Workspace;

/// How `demo.sh` marks the lines that people should see.
const MARK: &str = "demo>";
/// A stock kernel boots in a second where KVM is a real one; where it is not, it never does.
const DIRECT_LIMIT: Duration = Duration::from_secs(25);

/// Where the story runs.
#[derive(clap::Args)]
pub struct Options {
    /// Show this binary instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Run in the lab even if the host's KVM would do.
    #[arg(long)]
    nested: bool,
}

/// Tells the story.
pub fn run(options: &Options, workspace: &Workspace) -> Result<ExitCode, Error> {
    println!(
        "Dormouse boots Linux. Building it and preparing the lab; the first time takes a few minutes."
    );
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => workspace.build_dormouse()?,
    };
    let assets = Assets::prepare(workspace)?;
    let obstacle = if options.nested {
        Some("asked for".to_string())
    } else {
        why_not_direct()
    };
    let reason = match obstacle {
        Some(reason) => reason,
        None => match run_direct(workspace, &assets, &binary)? {
            Verdict::Pass => return Ok(ExitCode::SUCCESS),
            Verdict::Fail(reason) | Verdict::NotRun(reason) => {
                format!("stock Linux did not boot on this host's KVM: {reason}")
            }
        },
    };
    println!("In the lab's nested form ({reason}).");
    match run_nested(workspace, &assets, &binary)? {
        Verdict::Pass => Ok(ExitCode::SUCCESS),
        Verdict::Fail(reason) | Verdict::NotRun(reason) => {
            println!("The story ended early: {reason}");
            println!("Its logs are in {}", assets.logs("demo").display());
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What is known beforehand to keep stock Linux from booting on this host's KVM.
fn why_not_direct() -> Option<String> {
    if !Path::new("/dev/kvm").exists() {
        return Some("this host has no /dev/kvm".to_string());
    }
    // A KVM without hardware virtualization emulates a guest kernel's instructions, and not all of them.
    let hardware = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| Path::new("/sys/module").join(module).is_dir());
    (!hardware).then(|| "this host's KVM works without hardware virtualization".to_string())
}

fn run_nested(workspace: &Workspace, assets: &Assets, binary: &Path) -> Result<Verdict, Error> {
    let sources = workspace.lab_sources();
    let bench = Bench {
        assets,
        iommufd: None,
        sources: &sources,
        binary: Some(binary),
        patience: 2.0,
        narrate: Some(MARK),
    };
    bench.run(&Scenario::read(&sources.join("demo.sh"))?)
}

fn run_direct(workspace: &Workspace, assets: &Assets, binary: &Path) -> Result<Verdict, Error> {
    let directory = assets.logs("demo-direct");
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(Error::file("remove", &directory))?;
    }
    let run = directory.join("run");
    fs::create_dir_all(&run).map_err(Error::file("create", &run))?;
    let sources = workspace.lab_sources();
    for (name, file) in [
        ("vmlinuz", assets.vmlinuz.clone()),
        ("l2.cpio", assets.l2_initramfs.clone()),
        ("lib.sh", sources.join("lib.sh")),
    ] {
        let link = directory.join(name);
        symlink(file, &link).map_err(Error::file("link", &link))?;
    }
    let story = directory.join("story.log");
    let output = fs::File::create(&story).map_err(Error::file("create", &story))?;
    let mut shell = Command::new("sh");
    shell
        .arg(sources.join("demo.sh"))
        .env("LAB", &directory)
        .env("RUN", &run)
        .env("DORMOUSE", binary);
    shell
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null());
    let child = shell
        .spawn()
        .map_err(|source| process::start_error(&shell, source))?;
    let mut running = Running::new(child);
    let deadline = Instant::now() + DIRECT_LIMIT;
    while !running.ended() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    if !running.ended() {
        stop_machine(&run);
        return Ok(Verdict::Fail(format!(
            "no end within {} s",
            DIRECT_LIMIT.as_secs()
        )));
    }
    let text = fs::read_to_string(&story).map_err(Error::file("read", &story))?;
    let verdict = Verdict::find(&text).unwrap_or_else(|| Verdict::Fail("no verdict".to_string()));
    if verdict == Verdict::Pass {
        for told in text.lines().filter_map(|line| line.strip_prefix(MARK)) {
            println!("{}", told.strip_prefix(' ').unwrap_or(told));
        }
    }
    Ok(verdict)
}

/// Ends the VM that a script left behind when its time was over; the script notes its process.
fn stop_machine(run: &Path) {
    if let Ok(process) = fs::read_to_string(run.join("pid")) {
        // It may have ended by itself, which is as good.
        let _ = process::capture(Command::new("kill").arg("-9").arg(process.trim()));
    }
}
