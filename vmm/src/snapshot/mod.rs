//! The snapshot directory, version 1: a machine's state, its devices' streams and its RAM, put away and taken back.
//!
//! [`SnapshotWriter`] makes one, [`Snapshot`] reads it. `manifest.json` says what there is, with a checksum for every
//! piece; it is written last, so a directory without it is no snapshot, and nothing is written to one that has it.
//! A directory is foreign input: a damaged or malicious one is an error, before anything of the host or a device is
//! touched. Who puts what into it, and in which order, is the machine's business.

mod check;
pub mod checksum;
mod directory;
mod error;
pub mod format;
mod reader;
mod source;
mod steps;
mod stream;
pub(crate) mod verify;
mod writer;

pub use error::{ReadError, WriteError};
pub use reader::Snapshot;
pub use source::DeviceStreamReader;
pub use stream::DeviceStream;
pub use writer::SnapshotWriter;

#[cfg(test)]
mod tests;
