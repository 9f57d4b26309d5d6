//! The two VMMs that are compared, given the same guest, memory and command line.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// RAM of the measured VM.
pub const MEMORY_MIB: u64 = 512;

/// A VMM to measure.
pub enum Contender {
    /// Ours.
    Dormouse {
        /// The binary.
        binary: PathBuf,
    },
    /// The distribution's QEMU with its smallest machine.
    QemuMicrovm,
}

/// A running VM whose guest has printed something. It dies with its owner.
pub struct RunningVm {
    child: Child,
    /// From before the process was started to the guest's first byte.
    pub first_output: Duration,
    _directory: TempDir,
}

impl Contender {
    /// Boots `guest` and waits for its first output; the guest then idles.
    pub fn boot(&self, guest: &Path) -> Result<RunningVm, String> {
        let directory =
            tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let errors = directory.path().join("stderr");
        let stderr =
            fs::File::create(&errors).map_err(|error| format!("no file for errors: {error}"))?;
        let mut command = self.command(guest, directory.path())?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let start = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", self.name()))?;
        let mut byte = [0];
        let read = child
            .stdout
            .as_mut()
            .map_or(Ok(0), |output| output.read(&mut byte));
        let first_output = start.elapsed();
        let vm = RunningVm {
            child,
            first_output,
            _directory: directory,
        };
        match read {
            Ok(1) => Ok(vm),
            _ => {
                let text = fs::read_to_string(&errors).unwrap_or_default();
                let last = text
                    .lines()
                    .last()
                    .unwrap_or("no message")
                    .trim()
                    .to_string();
                Err(format!(
                    "{} ended before its guest printed anything: {last}",
                    self.name()
                ))
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Contender::Dormouse { .. } => "dormouse",
            Contender::QemuMicrovm => "QEMU microvm",
        }
    }

    fn command(&self, guest: &Path, directory: &Path) -> Result<Command, String> {
        const WORDS: &str = "heartbeat=1000";
        // Not every KVM lets a guest's architectural capabilities be set, and QEMU gives up where it does not.
        const CPU: &str = "host,migratable=off,-arch-capabilities";
        let mut command;
        match self {
            Contender::Dormouse { binary } => {
                let config = directory.join("vm.json");
                let text = format!(
                    r#"{{"memory": {{"size": {}}}, "payload": {{"kernel": "{}", "cmdline": "{WORDS}"}},
                        "serial": {{"mode": "Tty"}}, "console": {{"mode": "Off"}}}}"#,
                    MEMORY_MIB << 20,
                    guest.display()
                );
                fs::write(&config, text)
                    .map_err(|error| format!("the config cannot be written: {error}"))?;
                command = Command::new(binary);
                command
                    .args(["--log-level", "error", "run", "--config"])
                    .arg(config);
            }
            Contender::QemuMicrovm => {
                command = Command::new("qemu-system-x86_64");
                command.args([
                    "-M",
                    "microvm,accel=kvm,isa-serial=on",
                    "-cpu",
                    CPU,
                    "-m",
                    &MEMORY_MIB.to_string(),
                ]);
                command.args([
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-serial",
                    "stdio",
                ]);
                command.arg("-kernel").arg(guest).args(["-append", WORDS]);
            }
        }
        Ok(command)
    }
}

impl RunningVm {
    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        // An error here means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
