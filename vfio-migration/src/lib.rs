//! The VFIO migration v2 protocol of `linux/vfio.h`, from the user's side.

#![deny(unsafe_code)]
#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

pub mod state;

pub use state::{FdEffect, MigFlags, MigState, UnknownState, next_hop, path};
