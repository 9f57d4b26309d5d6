//! The VFIO migration v2 protocol of `linux/vfio.h`, from the user's side.

#![deny(unsafe_code)]
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

mod device;
mod kernel;
pub mod state;
mod sys;

pub use device::{DataFd, IovaRange, MigrationIo, PrecopyInfo};
pub use kernel::{KernelData, KernelDevice};
pub use state::{FdEffect, MigFlags, MigState, UnknownState, next_hop, path};
