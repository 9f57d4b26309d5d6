//! Standard error for the log: a reader that stalls must stall neither the main loop nor a vCPU that has something to say.
//!
//! What the reader does not take at once waits in a bounded backlog, which is tried again with the next line and at the end;
//! lines for which it has no room are counted. There is no thread for it, since that would need a system call filter.

use std::collections::VecDeque;
use std::fmt::Write;
use std::io::stderr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// Bytes that wait for a slow reader.
const CAPACITY: usize = 64 << 10;
/// What a pipe takes without blocking when it polls as writable: PIPE_BUF.
const PIPE_CHUNK: usize = 4096;

/// How standard error is written without blocking and without a change that others who have it open would see.
enum Access {
    /// Opened anew, for flags of our own.
    Own(OwnedFd),
    /// It does not block, or only for as long as a disk takes.
    Plain,
    /// A socket, which takes the wish not to block with each call.
    Socket,
    /// At most `chunk` bytes at a time, and only when it polls as writable.
    PollFirst { chunk: usize },
}

impl Access {
    fn find(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
        if kind == FileType::Socket {
            return Ok(Self::Socket);
        }
        let is_nonblocking = rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK);
        if kind == FileType::RegularFile || is_nonblocking {
            return Ok(Self::Plain);
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(
            match rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()) {
                Ok(fd) => Self::Own(fd),
                Err(_) if kind == FileType::Fifo => Self::PollFirst { chunk: PIPE_CHUNK },
                Err(_) => Self::PollFirst { chunk: 1 },
            },
        )
    }

    fn write(&self, fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::Own(fd) => rustix::io::write(fd, bytes),
            Self::Plain => rustix::io::write(fd, bytes),
            Self::Socket => rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Self::PollFirst { chunk } => {
                if !is_writable(fd, Duration::ZERO) {
                    return Err(Errno::AGAIN);
                }
                rustix::io::write(fd, &bytes[..bytes.len().min(*chunk)])
            }
        }
    }
}

fn is_writable(fd: BorrowedFd<'_>, within: Duration) -> bool {
    let timeout = Timespec::try_from(within).unwrap_or_default();
    let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
    rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

struct Inner {
    /// `None` when standard error is closed.
    access: Option<Access>,
    backlog: VecDeque<u8>,
    lost_lines: u64,
}

impl Inner {
    /// Writes what the reader takes; whether that was all.
    fn write_out(&mut self) -> bool {
        let stderr = stderr();
        while let (chunk @ [_, ..], _) = self.backlog.as_slices() {
            let written = match &self.access {
                Some(access) => access.write(stderr.as_fd(), chunk),
                None => Err(Errno::BADF),
            };
            match written {
                Ok(0) | Err(Errno::AGAIN) => return false,
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(Errno::INTR) => {}
                // Nobody reads any more.
                Err(_) => self.backlog.clear(),
            }
        }
        true
    }

    fn push(&mut self, line: &[u8]) {
        if self.backlog.len() + line.len() > CAPACITY {
            self.lost_lines += 1;
        } else {
            self.backlog.extend(line);
        }
    }
}

/// The way to standard error.
pub struct LogWriter(Mutex<Inner>);

impl LogWriter {
    /// Finds out what standard error is.
    pub fn new() -> Self {
        Self(Mutex::new(Inner {
            access: Access::find(stderr().as_fd()).ok(),
            backlog: VecDeque::new(),
            lost_lines: 0,
        }))
    }

    /// Writes a line, now or later.
    pub fn line(&self, line: &[u8]) {
        let mut inner = self.inner();
        if inner.write_out() && inner.lost_lines > 0 {
            let mut notice = String::new();
            // Writing to a string cannot fail.
            let _ = writeln!(
                notice,
                " WARN {} lines of the log were lost: slow reader",
                inner.lost_lines
            );
            inner.lost_lines = 0;
            inner.push(notice.as_bytes());
        }
        inner.push(line);
        inner.write_out();
    }

    /// Waits until everything is written, at most for `limit`.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut inner = self.inner();
        while !inner.write_out() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            is_writable(stderr().as_fd(), left);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
