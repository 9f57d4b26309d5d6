//! A VMM under test: a `dormouse run`, `serve` or `restore` process with a directory of its own, whose output and end are
//! waited for with deadlines, and which dies with its owner.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::api::Api;
use crate::binary::dormouse;
use crate::capture::Capture;
use crate::config::{Serial, VmConfig};
use crate::exit::Exit;

/// For everything that a working VM does at once. Long, since test hosts are small and busy.
pub const SOON: Duration = Duration::from_secs(30);

/// A running VMM.
#[derive(Debug)]
pub struct TestVm {
    child: Child,
    stdin: Option<ChildStdin>,
    serial_file: Capture,
    stdout: Capture,
    stderr: Capture,
    serial: Serial,
    dir: TempDir,
}

impl TestVm {
    /// Writes the config and starts the VMM on it, standard input and output being pipes.
    pub fn start(config: &VmConfig) -> Self {
        Self::start_with(config, |_| ())
    }

    /// As [`TestVm::start`], after `adjust` has had its way with the command: other standard input or output, another user.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn start_with(config: &VmConfig, adjust: impl FnOnce(&mut Command)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut json = config.json.clone();
        if json.get("serial").is_none() {
            json["serial"] = VmConfig::serial_json(config.serial, dir.path());
        }
        let config_path = dir.path().join("vm.json");
        fs::write(&config_path, json.to_string()).expect("the config can be written");
        let mut command = Command::new(dormouse());
        command.arg("run").arg("--config").arg(&config_path);
        if config.api_socket {
            command.arg("--api-socket").arg(dir.path().join("api.sock"));
        }
        command.args(&config.arguments);
        Self::spawn(command, dir, config.serial, adjust)
    }

    /// Starts `dormouse serve`, a VMM without a VM. A VM that is created in it prints where `serial` says.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn serve(serial: Serial) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new(dormouse());
        command
            .arg("serve")
            .arg("--api-socket")
            .arg(dir.path().join("api.sock"));
        Self::spawn(command, dir, serial, |_| ())
    }

    /// Starts `dormouse restore` with an API socket on a snapshot of a VM whose serial port is [`Serial::Tty`].
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn restore(snapshot: &Path, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new(dormouse());
        command
            .arg("restore")
            .arg("--snapshot")
            .arg(snapshot)
            .arg("--api-socket")
            .arg(dir.path().join("api.sock"))
            .args(arguments);
        Self::spawn(command, dir, Serial::Tty, |_| ())
    }

    fn spawn(
        mut command: Command,
        dir: TempDir,
        serial: Serial,
        adjust: impl FnOnce(&mut Command),
    ) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        adjust(&mut command);
        let mut child = command.spawn().expect("the binary can be started");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let stdout = child.stdout.take().map(Capture::stream);
        Self {
            stdin: child.stdin.take(),
            stdout: stdout.unwrap_or_else(|| Capture::stream(io::empty())),
            stderr: Capture::stream(stderr),
            serial_file: Capture::file(dir.path().join("serial.log")),
            serial,
            child,
            dir,
        }
    }

    /// The JSON with which `config` is created over HTTP in this VMM, the serial port going where the VMM's owner looks.
    pub fn create_body(&self, config: &VmConfig) -> String {
        let mut json = config.json.clone();
        json["serial"] = VmConfig::serial_json(self.serial, self.dir());
        json.to_string()
    }

    /// The HTTP API.
    pub fn api(&self) -> Api {
        Api::new(&self.api_socket())
    }

    /// Directory with the VM's config, serial file and sockets; gone with the value.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Path of the API socket, which is there only for a config [`with_api`](VmConfig::with_api).
    pub fn api_socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// What the guest printed, where the serial port is a file or standard output.
    pub fn console(&self) -> &Capture {
        if self.serial == Serial::File {
            &self.serial_file
        } else {
            &self.stdout
        }
    }

    /// What the VMM wrote to standard error.
    pub fn stderr(&self) -> &Capture {
        &self.stderr
    }

    /// What the VMM wrote to standard output.
    pub fn stdout(&self) -> &Capture {
        &self.stdout
    }

    /// The guest's first line that contains `needle`.
    ///
    /// # Panics
    /// When it does not come in time, with all that was printed.
    pub fn expect(&self, needle: &str) -> String {
        self.expect_in(self.console(), needle)
    }

    /// As [`TestVm::expect`], for output captured elsewhere (a socket, a pseudo-terminal).
    ///
    /// # Panics
    /// As [`TestVm::expect`].
    pub fn expect_in(&self, console: &Capture, needle: &str) -> String {
        console.line(SOON, needle).unwrap_or_else(|text| {
            panic!(
                "no line with {needle:?} came.\n--- guest:\n{}\n--- stderr:\n{}",
                tail(&text),
                self.stderr.text()
            )
        })
    }

    /// Writes to the VMM's standard input, when that is a pipe.
    ///
    /// # Panics
    /// When it is not, or is closed.
    pub fn type_in(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is a pipe");
        stdin.write_all(bytes).expect("standard input is read");
        stdin.flush().expect("standard input is read");
    }

    /// Connects to the serial port's socket as soon as it is there.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn connect_serial(&self) -> UnixStream {
        connect(&self.dir.path().join("serial.sock"))
    }

    /// Sends a signal to the VMM.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the VMM runs");
    }

    /// Sends a signal to the VMM that runs as a job of a shell ([`Terminal::control`](crate::Terminal::control)).
    ///
    /// # Panics
    /// When the shell has no such job.
    pub fn signal_job(&self, signal: Signal) {
        let shell = self.pid();
        let jobs = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        let jobs = jobs.expect("the shell runs");
        let job = jobs.trim().parse().ok().and_then(Pid::from_raw);
        let job = job.unwrap_or_else(|| panic!("not one job: {jobs:?}"));
        kill_process(job, signal).expect("the VMM runs");
    }

    /// Whether the VMM still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Runs `dormouse ctl` with `arguments` on this VM.
    ///
    /// # Panics
    /// When the binary cannot be started.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        Command::new(dormouse())
            .arg("ctl")
            .arg("--api-socket")
            .arg(self.api_socket())
            .args(arguments)
            .output()
            .expect("the binary can be started")
    }

    /// Waits for the VMM's end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self) -> Exit {
        Exit::of(&mut self.child, &self.stderr, SOON).unwrap_or_else(|| {
            panic!(
                "the VMM does not end.\n--- guest:\n{}\n--- stderr:\n{}",
                tail(&self.console().text()),
                self.stderr.text()
            )
        })
    }

    /// Waits for the end that follows a guest's power-off.
    ///
    /// # Panics
    /// When the VMM does not end in time or not with exit status 0, or the guest's power-off did nothing.
    pub fn wait_powered_off(&mut self) -> Exit {
        let exit = self.wait();
        assert!(exit.status.success(), "{exit:?}");
        assert!(!self.console().text().contains("had no effect"));
        exit
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        // Both fail harmlessly for a VMM that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the program of `command` started by another one, which gets it as its last arguments. Standard input, output and
/// error are pipes again.
pub fn wrap(command: &mut Command, by: &[&str]) {
    let mut wrapped = Command::new(by[0]);
    wrapped
        .args(&by[1..])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    *command = wrapped;
}

/// Connects to a Unix socket as soon as somebody listens there.
///
/// # Panics
/// When that takes too long.
pub fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + SOON;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{path:?}: {error}"),
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The end of a long text.
fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    &text[text.ceil_char_boundary(start)..]
}
