//! The console as a file that output is appended to.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::host_fd::HostFd;
use super::{ConsoleError, Endpoint};

pub(super) fn open(path: &Path) -> Result<Endpoint, ConsoleError> {
    let failed = |source| ConsoleError::OpenFile {
        path: path.to_path_buf(),
        source,
    };
    // Nonblocking, so that a FIFO without a reader is an error and no endless wait.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let sink = HostFd::file(OwnedFd::from(file)).map_err(|source| failed(source.into()))?;
    Ok(Endpoint {
        output: Some(Arc::new(sink)),
        ..Endpoint::default()
    })
}
