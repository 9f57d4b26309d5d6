//! The only unsafe code of this crate: ioctls and the signal mask.
//!
//! What leaves these modules is safe: typed arguments in, owned descriptors and [`std::io::Error`]
//! out. Called by [`crate::KernelDevice`] and around every SET of [`crate::MigratableDevice`].
#![allow(unsafe_code)]

pub(crate) mod ioctl;
pub(crate) mod signals;
pub(crate) mod uapi;
