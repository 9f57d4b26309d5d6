//! A pseudo-terminal for tests: the VMM gets its slave as standard input and output, the test plays the person at
//! the master and looks at the terminal's settings.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::capture::Capture;
use crate::vm::wrap;

/// That of a new window in most terminal programs.
const SIZE: Winsize = Winsize {
    ws_row: 24,
    ws_col: 80,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// Where a shell runs the VMM that it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// It owns the terminal.
    Foreground,
    /// It may print on the terminal, and is stopped when it reads from it.
    Background,
}

impl Job {
    /// The shell's commands; its arguments are those of the VMM. It ends as the VMM did, but after one in the foreground
    /// only when it has read a line: with the end of its session the terminal's settings are gone.
    fn script(self) -> &'static str {
        match self {
            Self::Foreground => r#"set -m; "$@"; code=$?; read -r line; exit $code"#,
            Self::Background => r#"set -m; "$@" & wait $!"#,
        }
    }
}

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: File,
}

impl Terminal {
    /// Makes one.
    ///
    /// # Panics
    /// When the system has none left.
    pub fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pty is free");
        grantpt(&master).expect("a new pty can be granted");
        unlockpt(&master).expect("a new pty can be unlocked");
        let name = ptsname(&master, Vec::new()).expect("a pty has a name");
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(std::ffi::OsStr::from_bytes(name.as_bytes()))
            .expect("the slave of a pty can be opened");
        tcsetwinsize(&slave, SIZE).expect("a pty has a size");
        Self {
            master: File::from(master),
            slave,
        }
    }

    /// Makes the slave standard input and output of `command`.
    ///
    /// # Panics
    /// When no file descriptor is free.
    pub fn attach(&self, command: &mut Command) {
        let clone = || OwnedFd::from(self.slave.try_clone().expect("a descriptor is free"));
        command.stdin(clone()).stdout(clone());
    }

    /// Makes the slave standard input, output and error of `command`.
    ///
    /// # Panics
    /// When no file descriptor is free.
    pub fn attach_all(&self, command: &mut Command) {
        self.attach(command);
        command.stderr(self.slave.try_clone().expect("a descriptor is free"));
    }

    /// Makes the slave the controlling terminal of a shell with job control, which runs `command`.
    ///
    /// # Panics
    /// When no file descriptor is free.
    pub fn control(&self, command: &mut Command, job: Job) {
        wrap(
            command,
            &["setsid", "--ctty", "sh", "-c", job.script(), "sh"],
        );
        self.attach(command);
    }

    /// Collects what is printed on the terminal.
    ///
    /// # Panics
    /// When no file descriptor is free.
    pub fn capture(&self) -> Capture {
        Capture::stream(self.master.try_clone().expect("a descriptor is free"))
    }

    /// Types on the terminal.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).expect("the terminal is there");
    }

    /// All settings, to be compared.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn settings(&self) -> String {
        format!(
            "{:?}",
            tcgetattr(&self.slave).expect("a terminal has settings")
        )
    }

    /// Whether typed characters reach the reader at once and without echo.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn is_raw(&self) -> bool {
        let settings = tcgetattr(&self.slave).expect("a terminal has settings");
        !settings
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO)
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}
