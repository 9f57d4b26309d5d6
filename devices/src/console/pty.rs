//! The console as a pseudo-terminal that users connect to with screen, minicom or the like.
//!
//! We hold the user's end open ourselves. So the line never hangs up, whoever comes and goes, and
//! what the guest sends while nobody listens waits in the terminal's buffer and then in ours.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

use super::host_fd::HostFd;
use super::{ConsoleError, Endpoint};

/// The user's end of the line.
#[derive(Debug)]
pub(super) struct Pty {
    path: PathBuf,
    _user_end: OwnedFd,
}

impl Pty {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

pub(super) fn open() -> Result<Endpoint, ConsoleError> {
    allocate().map_err(|source| ConsoleError::AllocatePty { source })
}

fn allocate() -> Result<Endpoint, Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let guest_end = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&guest_end)?;
    rustix::pty::unlockpt(&guest_end)?;
    let path = rustix::pty::ptsname(&guest_end, Vec::new())?;
    let user_end = rustix::pty::ioctl_tiocgptpeer(&guest_end, flags)?;
    let mut settings = rustix::termios::tcgetattr(&user_end)?;
    settings.make_raw();
    rustix::termios::tcsetattr(&user_end, OptionalActions::Now, &settings)?;
    let status = rustix::fs::fcntl_getfl(&guest_end)?;
    rustix::fs::fcntl_setfl(&guest_end, status | OFlags::NONBLOCK)?;
    let guest_end = Arc::new(HostFd::nonblocking(guest_end));
    Ok(Endpoint {
        input: Some(Arc::clone(&guest_end)),
        output: Some(guest_end),
        pty: Some(Pty {
            path: PathBuf::from(OsString::from_vec(path.into_bytes())),
            _user_end: user_end,
        }),
        ..Endpoint::default()
    })
}
