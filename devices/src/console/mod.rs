//! The host end of the serial line: terminal, file, pseudo-terminal, socket or nothing.
//!
//! A [`Console`] is opened once per process and outlives the guest's resets; each machine that is
//! built attaches its serial port to it. Output comes from vCPU threads through
//! [`SerialBackend`] and never waits: what the host end does not take at once
//! goes to a bounded backlog (`output`). Input, the backlog and connections are served by the
//! [`ConsoleSubscriber`] in the main loop. Lock order: chip, then output; the subscriber calls the
//! chip with no lock of its own held.

mod escape;
mod file;
mod host_fd;
mod output;
mod pty;
mod socket;
mod subscriber;
mod tty;
mod wake;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use subscriber::ConsoleSubscriber;
pub use tty::restore_terminal;

use crate::host::SerialBackend;
use crate::serial_port::SerialPort;
use escape::Escape;
use host_fd::HostFd;
use output::{Output, Unheard};
use pty::Pty;
use rustix::io::Errno;
use socket::Listener;
use tty::RawMode;

/// Where the host end of the line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleMode {
    /// Standard input and output of the process; raw if they are a terminal.
    ///
    /// On a terminal, Ctrl-A x ends the VM and Ctrl-A a sends Ctrl-A.
    Tty,
    /// Output is appended to the file, which is created with mode 0600; there is no input.
    File(PathBuf),
    /// A pseudo-terminal of our own, whose path is logged.
    Pty,
    /// A Unix socket of our own, mode 0600, that serves one client at a time.
    Socket(PathBuf),
    /// Output is discarded; there is no input.
    Null,
    /// Like [`ConsoleMode::Null`], and the machine has no serial port at all.
    Off,
}

/// Why a console cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// The event that wakes the main loop.
    #[error("cannot create the console's wake-up event")]
    CreateWake {
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// Standard input or output.
    #[error("cannot use {stream} as the console")]
    UseStdio {
        /// Which one.
        stream: &'static str,
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// The terminal's settings.
    #[error("cannot set the terminal to raw mode")]
    SetRawMode {
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// The output file.
    #[error("cannot open the console file {} for appending", path.display())]
    OpenFile {
        /// The path from the configuration.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The pseudo-terminal.
    #[error("cannot allocate a pseudo-terminal for the console")]
    AllocatePty {
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// The listening socket.
    #[error("cannot listen on the console socket {}", path.display())]
    Listen {
        /// The path from the configuration.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// Somebody else listens there.
    #[error(
        "cannot listen on the console socket {}: another process does; \
         choose another path or end that process",
        path.display()
    )]
    SocketInUse {
        /// The path from the configuration.
        path: PathBuf,
    },
}

/// The serial port that gets the input, once there is one.
type AttachedPort = Arc<Mutex<Option<Arc<SerialPort>>>>;

/// The host end of the serial line.
pub struct Console {
    output: Arc<Output>,
    port: AttachedPort,
    path: Option<PathBuf>,
    /// Keeps the terminal raw, and restores it when the console goes.
    _raw_mode: Option<RawMode>,
}

/// The parts of a host end, as its mode provides them.
#[derive(Default)]
struct Endpoint {
    input: Option<Arc<HostFd>>,
    output: Option<Arc<HostFd>>,
    escape: Option<Escape>,
    raw_mode: Option<RawMode>,
    listener: Option<Listener>,
    pty: Option<Pty>,
}

impl Endpoint {
    fn open(mode: &ConsoleMode) -> Result<Self, ConsoleError> {
        match mode {
            ConsoleMode::Tty => tty::open(),
            ConsoleMode::File(path) => file::open(path),
            ConsoleMode::Pty => pty::open(),
            ConsoleMode::Socket(path) => socket::open(path),
            ConsoleMode::Null | ConsoleMode::Off => Ok(Self::default()),
        }
    }

    fn path(&self) -> Option<&Path> {
        let socket = self.listener.as_ref().map(Listener::path);
        socket.or_else(|| self.pty.as_ref().map(Pty::path))
    }
}

impl Console {
    /// Opens the host end and the subscriber that serves it, to be added to the main loop.
    ///
    /// `on_quit` is called from the main loop when the user types the escape sequence that ends
    /// the VM.
    pub fn open(
        mode: &ConsoleMode,
        on_quit: impl FnMut() + Send + 'static,
    ) -> Result<(Self, ConsoleSubscriber), ConsoleError> {
        Self::with_endpoint(Endpoint::open(mode)?, Box::new(on_quit))
    }

    fn with_endpoint(
        mut endpoint: Endpoint,
        on_quit: Box<dyn FnMut() + Send>,
    ) -> Result<(Self, ConsoleSubscriber), ConsoleError> {
        let path = endpoint.path().map(Path::to_path_buf);
        if let Some(path) = &path {
            tracing::info!("console: serial port is at {}", path.display());
        }
        // A socket's next client gets what was sent while nobody listened; elsewhere nobody can
        // come after the one listener is gone.
        let unheard = if endpoint.listener.is_some() {
            Unheard::Keep
        } else {
            Unheard::Discard
        };
        let output = Output::new(endpoint.output.take(), unheard)
            .map_err(|source| ConsoleError::CreateWake { source })?;
        let output = Arc::new(output);
        let port = AttachedPort::default();
        let console = Self {
            output: Arc::clone(&output),
            port: Arc::clone(&port),
            path,
            _raw_mode: endpoint.raw_mode.take(),
        };
        let subscriber = ConsoleSubscriber::new(endpoint, output, port, on_quit);
        Ok((console, subscriber))
    }

    /// The end of the line that a serial port sends to.
    pub fn backend(&self) -> Arc<dyn SerialBackend> {
        Arc::clone(&self.output) as _
    }

    /// Sends input to `port` from now on, instead of the port before it.
    pub fn attach(&self, port: Arc<SerialPort>) {
        *self.port.lock().unwrap_or_else(PoisonError::into_inner) = Some(port);
        self.output.input_room();
    }

    /// Lets go of the port. Input waits in the host until the next one.
    pub fn detach(&self) {
        *self.port.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Where a user connects: the pseudo-terminal or the socket.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Bytes of output lost since the start: the host end did not take them, or failed.
    pub fn dropped_bytes(&self) -> u64 {
        self.output.dropped_bytes()
    }

    /// Waits until the backlog is written, or `limit` has passed. For the end of the process,
    /// when the main loop no longer serves the console.
    pub fn drain(&self, limit: Duration) {
        self.output.drain(limit);
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("path", &self.path)
            .field("dropped_bytes", &self.dropped_bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
