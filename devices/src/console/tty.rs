//! The console on standard input and output.
//!
//! If input is a terminal it is made raw, so that every key reaches the guest. The settings from
//! before are kept for the whole process, because whatever ends it must be able to restore them:
//! the console going out of scope, and [`restore_terminal`] from a panic hook or an exit path. A
//! process in the background gets no input and leaves the terminal alone, since the system would
//! stop it for trying.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, TryLockError};

use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios};

use super::escape::Escape;
use super::host_fd::{Direction, HostFd};
use super::{ConsoleError, Endpoint};

/// The settings to go back to. Process-wide, as the terminal itself is.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Restores the terminal if a console made it raw; may be called at any time, any number of times.
pub fn restore_terminal() {
    // Called from a panic hook the lock may be held by the panicking thread: do not wait for it.
    let mut saved = match SAVED.try_lock() {
        Ok(saved) => saved,
        Err(TryLockError::Poisoned(saved)) => saved.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some((terminal, settings)) = saved.take() {
        // A terminal that is gone needs no restoring.
        let _gone = rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &settings);
    }
}

/// Keeps the terminal raw while it lives.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    fn enter(terminal: impl AsFd) -> Result<Self, Errno> {
        let settings = rustix::termios::tcgetattr(&terminal)?;
        let kept = rustix::io::fcntl_dupfd_cloexec(&terminal, 3)?;
        let mut raw = settings.clone();
        raw.make_raw();
        // Our own log lines go to the same terminal and rely on its newline translation.
        raw.output_modes = settings.output_modes;
        match SAVED.lock() {
            Ok(mut saved) => *saved = Some((kept, settings)),
            Err(poisoned) => *poisoned.into_inner() = Some((kept, settings)),
        }
        let guard = Self(());
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_terminal();
    }
}

pub(super) fn open() -> Result<Endpoint, ConsoleError> {
    open_on(std::io::stdin(), std::io::stdout())
}

/// Opens the console on any pair of inherited descriptors. A closed one is not used.
pub(super) fn open_on(input: impl AsFd, output: impl AsFd) -> Result<Endpoint, ConsoleError> {
    let mut endpoint = Endpoint {
        output: inherited(&output, Direction::Out, "standard output")?,
        ..Endpoint::default()
    };
    if !rustix::termios::isatty(&input) {
        endpoint.input = inherited(&input, Direction::In, "standard input")?;
    } else if in_background(&input) {
        tracing::warn!("console: no input, since the process is in the background");
    } else {
        endpoint.input = inherited(&input, Direction::In, "standard input")?;
        endpoint.escape = Some(Escape::default());
        let raw_mode =
            RawMode::enter(&input).map_err(|source| ConsoleError::SetRawMode { source })?;
        endpoint.raw_mode = Some(raw_mode);
    }
    Ok(endpoint)
}

fn inherited(
    fd: impl AsFd,
    direction: Direction,
    stream: &'static str,
) -> Result<Option<Arc<HostFd>>, ConsoleError> {
    match HostFd::inherited(fd.as_fd(), direction) {
        Ok(fd) => Ok(Some(Arc::new(fd))),
        Err(Errno::BADF) => Ok(None),
        Err(source) => Err(ConsoleError::UseStdio { stream, source }),
    }
}

fn in_background(terminal: impl AsFd) -> bool {
    // A terminal that is not our controlling one does no job control on us.
    rustix::termios::tcgetpgrp(terminal)
        .is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}
