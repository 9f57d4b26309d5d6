//! The API socket in the file system: made so that only its owner can ever connect, and removed at the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why the API socket cannot be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// The path holds something that is not a socket.
    #[error("cannot make the API socket {}: the path exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("cannot make the API socket {}: another process listens on it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The path is too long for a socket address, or holds a NUL.
    #[error("cannot make the API socket {}: the path does not fit in a socket address", path.display())]
    Address {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A socket left behind by a dead process cannot be examined or removed.
    #[error("cannot replace the API socket {}", path.display())]
    Replace {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The host refuses the socket.
    #[error("cannot make the API socket {}", path.display())]
    Create {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// The path of a socket that this process listens on; removed when dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have put its own socket there.
        if identity(&self.path).is_ok_and(|found| found == self.device_and_inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(
                "cannot remove the API socket {}: {error}",
                self.path.display()
            );
        }
    }
}

/// Listens on a new socket at `path`, with mode 0600; replaces a socket on which nobody listens.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let owned = || path.to_owned();
    let address = SocketAddrUnix::new(path).map_err(|error| BindError::Address {
        path: owned(),
        source: error.into(),
    })?;
    remove_stale(path)?;
    let create = |source| BindError::Create {
        path: owned(),
        source,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| create(error.into()))?;
    rustix::net::bind(&socket, &address).map_err(|error| create(error.into()))?;
    let file = SocketFile {
        path: owned(),
        device_and_inode: identity(path).map_err(create)?,
    };
    // The mode is set before anyone can connect: until listen(), a connection is refused.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(create)?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| create(error.into()))?;
    Ok((UnixListener::from(socket), file))
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let owned = || path.to_owned();
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BindError::Replace {
                path: owned(),
                source,
            });
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket { path: owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { path: owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| BindError::Replace {
                path: owned(),
                source,
            })
        }
        Err(source) => Err(BindError::Replace {
            path: owned(),
            source,
        }),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::{BindError, listen};

    #[test]
    fn socket_is_private_and_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("api");
        let (_listener, file) = listen(&path).expect("it listens");
        let mode = std::fs::metadata(&path)
            .expect("it exists")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("api");
        let live = UnixListener::bind(&path).expect("a live socket");
        assert!(matches!(listen(&path), Err(BindError::InUse { .. })));
        drop(live);
        listen(&path).expect("nobody listens any more");
    }

    #[test]
    fn other_files_and_long_paths_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("api");
        std::fs::write(&path, "precious").expect("a file");
        assert!(matches!(listen(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(
            std::fs::read(&path).expect("it is still there"),
            b"precious"
        );
        let long = directory.path().join("x".repeat(200));
        assert!(matches!(listen(&long), Err(BindError::Address { .. })));
        let missing = directory.path().join("none/api");
        assert!(matches!(listen(&missing), Err(BindError::Create { .. })));
    }

    #[test]
    fn socket_of_another_process_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("api");
        let (_listener, file) = listen(&path).expect("it listens");
        let elsewhere = directory.path().join("other");
        let _other = UnixListener::bind(&elsewhere).expect("another socket");
        std::fs::rename(&elsewhere, &path).expect("it takes the place");
        drop(file);
        assert!(path.exists());
    }
}
