//! A scripted device for tests: the kernel's state machine with faults where a test wants them.
//!
//! [`ScriptedDevice`] walks the kernel's table hop by hop, hands out data descriptors that die
//! with their session, and does what its [`Fault`]s say. All devices of a test, and any other fake
//! that joins in with [`Trace::note`], record into one [`Trace`], so that a test can assert the
//! order of events across them. Part of the crate with the `testing` feature only.

mod data;
mod device;
mod fault;
mod model;
mod trace;

pub use device::ScriptedDevice;
pub use fault::{FOREVER, Fault};
pub use model::{Acceptance, Contents};
pub use trace::{Event, Step, Trace};
