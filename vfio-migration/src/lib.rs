//! The VFIO migration v2 protocol of `linux/vfio.h`, from the user's side.
//!
//! A device that supports it is a small state machine inside the kernel. This crate knows the
//! machine ([`state`]), the file descriptors it hands out ([`MigrationIo`], [`KernelDevice`]) and what to do
//! when a step fails ([`MigratableDevice`]). It knows nothing of PCI configuration space or of
//! KVM: whoever owns the function repeats its fix-ups when an [`Outcome`] says that the device
//! was reset.
//!
//! The usual way: [`MigratableDevice::open`], [`group::pause`], [`MigratableDevice::begin_saving`],
//! [`group::resume`]; and to wake up, [`MigratableDevice::begin_resuming`], [`Loaded::keep`], the
//! owner's fix-ups, [`group::resume`].

#![deny(unsafe_code)]
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

mod device;
pub mod dirty;
mod error;
pub mod group;
mod kernel;
mod migratable;
mod resuming;
#[cfg(test)]
mod robustness;
mod saving;
pub mod state;
mod stream;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use device::{DataFd, IovaRange, MigrationIo, PrecopyInfo};
pub use error::{Error, Failure, LostCause, Outcome};
pub use kernel::{KernelData, KernelDevice};
pub use migratable::MigratableDevice;
pub use resuming::{Loaded, Resuming};
pub use saving::Saving;
pub use state::{FdEffect, MigFlags, MigState, UnknownState, next_hop, path};
pub use stream::{BUFFER_BYTES, StreamControl, StreamError, StreamLimits};
