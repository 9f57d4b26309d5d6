//! The only unsafe code of this crate: ioctls.
//!
//! What leaves these modules is safe: typed arguments in, owned descriptors and [`std::io::Error`]
//! out. Called by [`crate::KernelDevice`].
#![allow(unsafe_code)]

pub(crate) mod ioctl;
pub(crate) mod uapi;
