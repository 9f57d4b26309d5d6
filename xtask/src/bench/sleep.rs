//! Sleep and wake of a 4 GiB VM with 512 MiB in use: pause, snapshot beside a plain synced copy of as many bytes, and restore to
//! the guest's first output.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bench::{Figure, NO_CONTENDER, Value, median_of};

/// RAM of the VM.
const MEMORY_MIB: u64 = 4096;
/// What of it the guest has written.
const USED_MIB: u64 = 512;
/// Bytes of one write of the plain copy.
const COPY_BYTES: usize = 1 << 20;

/// One cycle's measurements.
struct Cycle {
    pause_ms: f64,
    snapshot_ms: f64,
    copy_ms: f64,
    disk_mib: f64,
    on_demand_ms: f64,
    eager_ms: f64,
}

/// Sleeps and wakes `runs` times; the directory for it is on the disk of `scratch`.
pub fn figures(binary: &Path, guest: &Path, scratch: &Path, runs: usize) -> Vec<Figure> {
    let cycles: Result<Vec<Cycle>, String> = [true, false]
        .into_iter()
        .cycle()
        .take(runs.max(1))
        .map(|copy_first| cycle(binary, guest, scratch, copy_first))
        .collect();
    let value = |unit, of: fn(&Cycle) -> f64| match &cycles {
        Ok(cycles) => median_of(cycles.iter().map(of).collect(), unit),
        Err(reason) => Value::NotAvailable(reason.clone()),
    };
    let figure = |what, target, dormouse| Figure {
        what,
        target,
        dormouse,
        qemu: Value::NotAvailable(NO_CONTENDER.to_string()),
    };
    vec![
        figure(
            "pause, 4 GiB VM",
            "< 1 ms",
            value("ms", |cycle| cycle.pause_ms),
        ),
        figure(
            "snapshot, 512 MiB of 4 GiB in use",
            "",
            value("ms", |cycle| cycle.snapshot_ms),
        ),
        figure(
            "  as a multiple of a synced copy of 512 MiB",
            "<= 1.6",
            value("x", |cycle| cycle.snapshot_ms / cycle.copy_ms),
        ),
        figure(
            "  on the disk",
            "< 560 MiB",
            value("MiB", |cycle| cycle.disk_mib),
        ),
        figure(
            "restore on demand to first guest output",
            "<= 8 ms",
            value("ms", |cycle| cycle.on_demand_ms),
        ),
        figure(
            "restore of all memory to first guest output",
            "",
            value("ms", |cycle| cycle.eager_ms),
        ),
    ]
}

/// `copy_first`: of the two that are compared, whichever is written later finds the disk busier.
fn cycle(binary: &Path, guest: &Path, scratch: &Path, copy_first: bool) -> Result<Cycle, String> {
    let directory =
        TempDir::new_in(scratch).map_err(|error| format!("no scratch directory: {error}"))?;
    let (socket, snapshot) = (
        directory.path().join("api.sock"),
        directory.path().join("snapshot"),
    );
    let mut vm = boot(binary, guest, directory.path(), &socket)?;
    control(binary, &socket, &["pause".as_ref()])?;
    warm_up(directory.path())?;
    let copy = || synced_copy(&directory.path().join("copy"));
    let sleep = || -> Result<f64, String> {
        let start = Instant::now();
        control(
            binary,
            &socket,
            &["snapshot".as_ref(), snapshot.as_os_str()],
        )?;
        Ok(millis(start.elapsed()))
    };
    let (copy_ms, snapshot_ms) = if copy_first {
        let copy_ms = copy()?;
        (copy_ms, sleep()?)
    } else {
        let snapshot_ms = sleep()?;
        (copy()?, snapshot_ms)
    };
    vm.end();
    let pause_ms = recorded_ms(&snapshot, "stop vCPUs")?;
    let disk_mib = disk_bytes(&snapshot)? as f64 / f64::from(1 << 20);
    let on_demand_ms = wake(binary, &snapshot, &[])?;
    let eager_ms = wake(binary, &snapshot, &["--eager"])?;
    Ok(Cycle {
        pause_ms,
        snapshot_ms,
        copy_ms,
        disk_mib,
        on_demand_ms,
        eager_ms,
    })
}

/// A VMM that dies with its owner.
struct Vmm(Child);

impl Vmm {
    fn end(&mut self) {
        // An error here means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.end();
    }
}

/// Boots the guest and waits until it has filled its memory.
fn boot(binary: &Path, guest: &Path, directory: &Path, socket: &Path) -> Result<Vmm, String> {
    let config = directory.join("vm.json");
    let text = format!(
        r#"{{"memory": {{"size": {}}}, "payload": {{"kernel": "{}", "cmdline": "fill={USED_MIB} heartbeat=0"}},
            "serial": {{"mode": "Tty"}}, "console": {{"mode": "Off"}}}}"#,
        MEMORY_MIB << 20,
        guest.display()
    );
    fs::write(&config, text).map_err(|error| format!("the config cannot be written: {error}"))?;
    let mut vmm = spawn(
        Command::new(binary)
            .args(["--log-level", "error", "run", "--config"])
            .arg(&config)
            .arg("--api-socket")
            .arg(socket),
    )?;
    let output = vmm
        .0
        .stdout
        .take()
        .ok_or("the guest's output is not there")?;
    let mut lines = BufReader::new(output);
    let mut line = String::new();
    while !line.starts_with("heartbeat") {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(1..) => {}
            _ => return Err("dormouse ended before its guest had filled its memory".to_string()),
        }
    }
    // A reader must stay, or the VMM would see a closed pipe.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    Ok(vmm)
}

/// Milliseconds from the start of the process to the woken guest's first byte.
fn wake(binary: &Path, snapshot: &Path, arguments: &[&str]) -> Result<f64, String> {
    let start = Instant::now();
    let mut vmm = spawn(
        Command::new(binary)
            .args(["--log-level", "error", "restore", "--resume", "--snapshot"])
            .arg(snapshot)
            .args(arguments),
    )?;
    let mut byte = [0];
    let read = vmm
        .0
        .stdout
        .as_mut()
        .map_or(Ok(0), |output| output.read(&mut byte));
    let elapsed = start.elapsed();
    match read {
        Ok(1) => Ok(millis(elapsed)),
        _ => Err("dormouse ended before the woken guest printed anything".to_string()),
    }
}

fn spawn(command: &mut Command) -> Result<Vmm, String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
        .spawn()
        .map(Vmm)
        .map_err(|error| format!("dormouse cannot be started: {error}"))
}

fn control(binary: &Path, socket: &Path, words: &[&std::ffi::OsStr]) -> Result<(), String> {
    let status = Command::new(binary)
        .arg("ctl")
        .arg("--api-socket")
        .arg(socket)
        .args(words)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("dormouse ctl {} failed", words[0].display())),
    }
}

/// Has the page cache hold, for a moment, as much as the copy and the snapshot will need. Where this machine is a virtual one, memory that
/// it never used before comes page by page from its host, at several times the cost of writing it, to whichever is written first.
fn warm_up(directory: &Path) -> Result<(), String> {
    let files = ["warm-up0", "warm-up1"].map(|name| directory.join(name));
    for file in &files {
        synced_copy(file)?;
    }
    for file in &files {
        fs::remove_file(file).map_err(|error| format!("a copy cannot be removed: {error}"))?;
    }
    Ok(())
}

/// A plain copy of what the guest has written, until it is on the disk, in milliseconds.
fn synced_copy(to: &Path) -> Result<f64, String> {
    let bytes = vec![0x5a; COPY_BYTES];
    let write = || -> std::io::Result<Duration> {
        let start = Instant::now();
        let mut file = File::create(to)?;
        for _ in 0..(USED_MIB << 20) / COPY_BYTES as u64 {
            file.write_all(&bytes)?;
        }
        file.sync_all()?;
        Ok(start.elapsed())
    };
    write()
        .map(millis)
        .map_err(|error| format!("the plain copy failed: {error}"))
}

/// The duration of a phase from the snapshot's own timeline.
fn recorded_ms(snapshot: &Path, phase: &str) -> Result<f64, String> {
    let text = fs::read_to_string(snapshot.join("manifest.json"))
        .map_err(|error| format!("no manifest: {error}"))?;
    let duration = text
        .split_once(&format!("\"name\": \"{phase}\""))
        .and_then(|(_, rest)| rest.split_once("\"duration_us\": "))
        .and_then(|(_, rest)| rest.split([',', '}']).next()?.trim().parse::<f64>().ok());
    duration
        .map(|us| us / 1e3)
        .ok_or_else(|| format!("the snapshot's timeline has no phase {phase}"))
}

fn disk_bytes(directory: &Path) -> Result<u64, String> {
    let sum = || -> std::io::Result<u64> {
        let files: Vec<PathBuf> = fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        files
            .iter()
            .map(|file| Ok(file.metadata()?.blocks() * 512))
            .sum()
    };
    sum().map_err(|error| format!("the snapshot cannot be examined: {error}"))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
