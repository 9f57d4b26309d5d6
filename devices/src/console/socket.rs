//! The console as a Unix socket that one client at a time connects to.
//!
//! The socket is created with mode 0600 and removed with the console. A socket that a dead process
//! left behind is replaced; one that somebody listens on is not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::host_fd::HostFd;
use super::{ConsoleError, Endpoint};

/// Clients that may wait to be told that the console is in use.
const BACKLOG: i32 = 4;

/// The listening socket and its name in the file system.
#[derive(Debug)]
pub(super) struct Listener {
    fd: Arc<HostFd>,
    path: PathBuf,
    /// The socket's own inode, so that a successor's at the same path is not removed.
    inode: Option<(u64, u64)>,
}

impl Listener {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> &Arc<HostFd> {
        &self.fd
    }

    /// Takes the next client. `EAGAIN` if there is none.
    pub(super) fn accept(&self) -> Result<Arc<HostFd>, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client = rustix::net::accept_with(&self.fd, flags)?;
        Ok(Arc::new(HostFd::socket(client)))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // A socket left behind is replaced by the next console on this path.
            let _left = rustix::fs::unlink(&self.path);
        }
    }
}

pub(super) fn open(path: &Path) -> Result<Endpoint, ConsoleError> {
    let failed = |source| ConsoleError::Listen {
        path: path.to_path_buf(),
        source,
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    if is_socket(path) {
        remove_stale(path, &address)?;
    }
    let fd = new_socket().map_err(failed)?;
    // The name in the file system gets the mode of the socket, so that it is never open to others.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    rustix::net::bind(&fd, &address).map_err(failed)?;
    let listener = Listener {
        fd: Arc::new(HostFd::nonblocking(fd)),
        path: path.to_path_buf(),
        inode: inode(path),
    };
    rustix::net::listen(&listener.fd, BACKLOG).map_err(failed)?;
    Ok(Endpoint {
        listener: Some(listener),
        ..Endpoint::default()
    })
}

fn new_socket() -> Result<std::os::fd::OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ConsoleError> {
    let listen = |source| ConsoleError::Listen {
        path: path.to_path_buf(),
        source,
    };
    let probe = new_socket().map_err(listen)?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(path).map_err(listen),
        // With its backlog full it is all the more in use.
        Ok(()) | Err(Errno::AGAIN) => Err(ConsoleError::SocketInUse {
            path: path.to_path_buf(),
        }),
        Err(source) => Err(listen(source)),
    }
}

fn lstat(path: &Path) -> Result<Stat, Errno> {
    rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

fn is_socket(path: &Path) -> bool {
    lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    lstat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}
