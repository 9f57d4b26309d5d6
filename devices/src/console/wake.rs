//! The event by which vCPU threads call the main loop to the console.

use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::host_fd::HostFd;

/// A nonblocking eventfd: any number of calls before the main loop looks are one.
#[derive(Debug)]
pub(super) struct Wake(Arc<HostFd>);

impl Wake {
    pub(super) fn new() -> Result<Self, Errno> {
        let fd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(HostFd::nonblocking(fd))))
    }

    /// Calls the main loop.
    pub(super) fn set(&self) {
        // It fails only when the counter is at its end, and then the event is set anyway.
        let _already_set = self.0.write(&1u64.to_ne_bytes());
    }

    /// Takes the call back, whether or not there was one.
    pub(super) fn clear(&self) {
        let _not_set = self.0.read(&mut [0; 8]);
    }

    pub(super) fn fd(&self) -> &Arc<HostFd> {
        &self.0
    }
}
