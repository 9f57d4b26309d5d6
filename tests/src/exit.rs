//! How a VMM ended, and what its end must look like when it refuses to start: soon, with one chain of reasons.

use std::io::{ErrorKind, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::binary::dormouse;
use crate::capture::Capture;
use crate::config::VmConfig;
use crate::vm::TestVm;

/// Bad input ends within a second; a debug build on a busy host gets more.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);

/// The end of a `dormouse` process.
#[derive(Debug)]
pub struct Exit {
    /// Exit status.
    pub status: ExitStatus,
    /// All that it wrote to standard error.
    pub stderr: String,
    /// From the start of waiting to the end.
    pub waited: Duration,
}

impl Exit {
    /// Waits for the end of `child`; `None` when it does not come in time.
    pub(crate) fn of(child: &mut Child, stderr: &Capture, timeout: Duration) -> Option<Self> {
        let begin = Instant::now();
        let status = loop {
            match child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None if begin.elapsed() > timeout => return None,
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        let waited = begin.elapsed();
        stderr.wait_for_end(timeout);
        Some(Self {
            status,
            stderr: stderr.text(),
            waited,
        })
    }

    /// Checks the shape of a failure: an exit status other than 0, one `error:` line that names all `nouns` (in any
    /// case), no panic.
    ///
    /// # Panics
    /// When the shape is another.
    pub fn assert_failure(&self, nouns: &[&str]) {
        assert!(
            self.status.code().is_some_and(|code| code != 0) && self.status.signal().is_none(),
            "{self:?}"
        );
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        let mut errors = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "));
        let chain = errors.next().map(str::to_lowercase);
        let chain = chain.unwrap_or_else(|| panic!("no reason is given: {self:?}"));
        assert_eq!(errors.next(), None, "one chain of reasons: {self:?}");
        for noun in nouns {
            assert!(
                chain.contains(&noun.to_lowercase()),
                "{noun:?} is not named: {}",
                self.stderr
            );
        }
    }
}

/// Starts a VM that must be refused and returns its end.
///
/// # Panics
/// When it is still there after the time that a refusal may take.
pub fn refused(config: &VmConfig) -> Exit {
    let mut vm = TestVm::start(config);
    let exit = vm.wait();
    assert!(exit.waited < REFUSED_WITHIN, "{exit:?}");
    exit
}

/// Runs `dormouse run` on a config file with `text` in it, and returns its end.
///
/// # Panics
/// As [`refused`].
pub fn refused_text(text: &[u8]) -> Exit {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(text).expect("the config can be written");
    refused_file(file.path())
}

/// Runs `dormouse run` on any config path, and returns its end.
///
/// # Panics
/// As [`refused`].
pub fn refused_file(path: &Path) -> Exit {
    refused_command(
        Command::new(dormouse())
            .arg("run")
            .arg("--config")
            .arg(path),
    )
}

/// Runs a command that ends up in `dormouse`, and returns its end.
///
/// # Panics
/// As [`refused`].
pub fn refused_command(command: &mut Command) -> Exit {
    ended(command, REFUSED_WITHIN)
}

/// Runs a command that ends by itself, well or not, and returns its end.
///
/// # Panics
/// When it is still there after `timeout`.
pub fn ended(command: &mut Command, timeout: Duration) -> Exit {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let deadline = Instant::now() + timeout;
    let mut child = loop {
        match command.spawn() {
            // A copy of the binary is open for writing in whatever another test forked at that moment, until its exec.
            Err(error)
                if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            started => break started.expect("the binary can be started"),
        }
    };
    let stderr = Capture::stream(child.stderr.take().expect("stderr is a pipe"));
    let exit = Exit::of(&mut child, &stderr, timeout);
    if exit.is_none() {
        // So that a test that fails leaves no process behind.
        let _ = child.kill();
        let _ = child.wait();
    }
    exit.unwrap_or_else(|| panic!("{command:?} does not end: {}", stderr.text()))
}
