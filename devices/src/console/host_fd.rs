//! A file descriptor of the host that is read and written without ever blocking.
//!
//! A descriptor inherited from a parent process shares its file status flags with it: O_NONBLOCK
//! on our standard output would be set on the user's shell too. So an inherited terminal or pipe
//! is opened anew for flags of its own, and where that is forbidden each access is preceded by a
//! poll and kept so small that it cannot block.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// What a pipe takes at once when it polls as writable: PIPE_BUF.
const PIPE_CHUNK: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// The open file description is nonblocking and ours.
    Nonblocking,
    /// A socket, which takes the wish not to block with each call.
    Socket,
    /// A regular file, which does not block.
    Regular,
    /// A shared description in blocking mode; `chunk` bytes may be written when it is writable.
    PollFirst { chunk: usize },
}

/// Which way an inherited descriptor is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    Out,
}

/// A descriptor and the way to use it without blocking.
#[derive(Debug)]
pub(super) struct HostFd {
    fd: OwnedFd,
    access: Access,
}

impl HostFd {
    /// Takes a descriptor that was opened with O_NONBLOCK by us.
    pub(super) fn nonblocking(fd: OwnedFd) -> Self {
        Self {
            fd,
            access: Access::Nonblocking,
        }
    }

    /// Takes a file that was opened with O_NONBLOCK by us, and may be a regular one.
    pub(super) fn file(fd: OwnedFd) -> Result<Self, Errno> {
        let regular = file_type(fd.as_fd())? == FileType::RegularFile;
        let access = if regular {
            Access::Regular
        } else {
            Access::Nonblocking
        };
        Ok(Self { fd, access })
    }

    /// Treats any descriptor as a regular file.
    #[cfg(test)]
    pub(super) fn regular_for_test(fd: OwnedFd) -> Self {
        Self {
            fd,
            access: Access::Regular,
        }
    }

    /// Takes a connected socket.
    pub(super) fn socket(fd: OwnedFd) -> Self {
        Self {
            fd,
            access: Access::Socket,
        }
    }

    /// Uses a descriptor that is shared with other processes, without a change that they would see.
    pub(super) fn inherited(fd: BorrowedFd<'_>, direction: Direction) -> Result<Self, Errno> {
        let kind = file_type(fd)?;
        let access = match kind {
            FileType::RegularFile | FileType::Directory => Access::Regular,
            FileType::Socket => Access::Socket,
            _ if rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK) => Access::Nonblocking,
            _ => match reopen(fd, direction) {
                Ok(fd) => return Ok(Self::nonblocking(fd)),
                Err(_) if kind == FileType::Fifo => Access::PollFirst { chunk: PIPE_CHUNK },
                // A terminal promises no more than some room when it polls as writable.
                Err(_) => Access::PollFirst { chunk: 1 },
            },
        };
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        Ok(Self { fd, access })
    }

    /// Reads what is there. `EAGAIN` if nothing is, 0 at the end.
    pub(super) fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        match self.access {
            Access::Nonblocking | Access::Regular => rustix::io::read(&self.fd, buf),
            Access::Socket => {
                rustix::net::recv(&self.fd, buf, RecvFlags::DONTWAIT).map(|(len, _)| len)
            }
            Access::PollFirst { .. } => {
                self.poll_now(PollFlags::IN)?;
                rustix::io::read(&self.fd, buf)
            }
        }
    }

    /// Writes what fits. `EAGAIN` if nothing does.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self.access {
            Access::Nonblocking | Access::Regular => rustix::io::write(&self.fd, bytes),
            Access::Socket => {
                rustix::net::send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            Access::PollFirst { chunk } => {
                self.poll_now(PollFlags::OUT)?;
                rustix::io::write(&self.fd, &bytes[..bytes.len().min(chunk)])
            }
        }
    }

    /// Whether a failed write says something about the bytes only, and not about the whole line:
    /// a file whose disk is full may have room later.
    pub(super) fn survives_errors(&self) -> bool {
        self.access == Access::Regular
    }

    /// Whether the peer has closed its end, or the half of it that sends.
    pub(super) fn peer_closed(&self) -> bool {
        self.wait(PollFlags::RDHUP, &Timespec::default())
            .is_ok_and(|flags| flags.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR))
    }

    /// Whether both directions of the line are closed.
    pub(super) fn is_hung_up(&self) -> bool {
        self.wait(PollFlags::empty(), &Timespec::default())
            .is_ok_and(|flags| flags.intersects(PollFlags::HUP | PollFlags::ERR))
    }

    /// Waits until `flags` or an error hold, or until `timeout`; returns what does hold.
    pub(super) fn wait(&self, flags: PollFlags, timeout: &Timespec) -> Result<PollFlags, Errno> {
        let mut fds = [PollFd::new(&self.fd, flags)];
        rustix::event::poll(&mut fds, Some(timeout))?;
        Ok(fds[0].revents())
    }

    fn poll_now(&self, flags: PollFlags) -> Result<(), Errno> {
        if self.wait(flags, &Timespec::default())?.is_empty() {
            Err(Errno::AGAIN)
        } else {
            Ok(())
        }
    }
}

impl AsRawFd for HostFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for HostFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn file_type(fd: BorrowedFd<'_>) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

fn reopen(fd: BorrowedFd<'_>, direction: Direction) -> Result<OwnedFd, Errno> {
    let access = match direction {
        Direction::In => OFlags::RDONLY,
        Direction::Out => OFlags::WRONLY,
    };
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (read, write) = std::io::pipe().unwrap();
        (OwnedFd::from(read), OwnedFd::from(write))
    }

    fn fill(fd: &HostFd) -> usize {
        let mut total = 0;
        loop {
            match fd.write(&[b'x'; 10_000]) {
                Ok(len) => total += len,
                Err(Errno::AGAIN) => return total,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn an_inherited_pipe_fills_without_blocking_and_keeps_its_flags() {
        let (_read, write) = pipe();
        let fd = HostFd::inherited(write.as_fd(), Direction::Out).unwrap();
        assert_eq!(fd.access, Access::Nonblocking);
        assert!(fill(&fd) > 0);
        let flags = rustix::fs::fcntl_getfl(&write).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn a_pipe_that_cannot_be_reopened_does_not_block_either() {
        let (read, write) = pipe();
        let access = Access::PollFirst { chunk: PIPE_CHUNK };
        let write = HostFd { fd: write, access };
        let read = HostFd { fd: read, access };
        assert_eq!(read.read(&mut [0]), Err(Errno::AGAIN));
        assert!(fill(&write) > 0);
        assert_eq!(read.read(&mut [0]), Ok(1));
    }

    #[test]
    fn an_inherited_file_keeps_its_offset() {
        let file = tempfile::tempfile().unwrap();
        rustix::io::write(&file, b"before ").unwrap();
        let fd = HostFd::inherited(file.as_fd(), Direction::Out).unwrap();
        fd.write(b"after").unwrap();
        let mut text = [0; 20];
        let len = rustix::io::pread(&file, &mut text, 0).unwrap();
        assert_eq!(&text[..len], b"before after");
    }

    #[test]
    fn a_closed_reader_is_an_error_and_no_signal() {
        let (read, write) = pipe();
        let fd = HostFd::inherited(write.as_fd(), Direction::Out).unwrap();
        drop(read);
        assert_eq!(fd.write(b"x"), Err(Errno::PIPE));
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = HostFd::inherited(a.as_fd(), Direction::Out).unwrap();
        assert!(!fd.peer_closed());
        drop(b);
        assert!(fd.peer_closed());
        assert_eq!(fd.write(b"x"), Err(Errno::PIPE));
    }
}
