//! Why a snapshot was not written, or cannot be read.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use thiserror::Error;

use super::format::ManifestError;
use crate::memory::DumpError;

/// A snapshot that was not written. What it had written is removed.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The directory.
    #[error("cannot open or create the snapshot directory {}", dir.display())]
    OpenDirectory {
        /// Which.
        dir: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another process writes there.
    #[error("{} is being written by another snapshot; choose another directory", dir.display())]
    Busy {
        /// Which.
        dir: PathBuf,
    },
    /// It has a manifest.
    #[error("{} already holds a snapshot; choose another directory", dir.display())]
    HoldsSnapshot {
        /// Which.
        dir: PathBuf,
    },
    /// It holds something else.
    #[error("{} is not part of a snapshot; choose an empty directory", path.display())]
    ForeignFile {
        /// What is there.
        path: PathBuf,
    },
    /// Left-overs of an interrupted snapshot.
    #[error("cannot remove {}, which an interrupted snapshot left", path.display())]
    RemoveLeftover {
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file.
    #[error("cannot create {}", path.display())]
    Create {
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its way to the disk.
    #[error("cannot make {} durable", path.display())]
    Sync {
        /// Which file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A piece of state.
    #[error("cannot write the state of {kind} {instance:?} as JSON")]
    Encode {
        /// What it is the state of.
        kind: &'static str,
        /// Which one.
        instance: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Guest RAM.
    #[error("cannot write guest RAM to {}", path.display())]
    Memory {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DumpError,
    },
    /// A device stream was not ended, or memory was not written.
    #[error("the snapshot is incomplete: {missing} was not written to its end")]
    Incomplete {
        /// What.
        missing: String,
    },
    /// The manifest.
    #[error("cannot describe the snapshot in its manifest")]
    Manifest(#[source] ManifestError),
}

/// A snapshot that cannot be used.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A file or the directory.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is no manifest.
    #[error(
        "{} holds no complete snapshot: it has no manifest.json, so it is another directory or its snapshot was interrupted",
        dir.display()
    )]
    NoSnapshot {
        /// Which directory.
        dir: PathBuf,
    },
    /// A file of the snapshot is not there.
    #[error("{} is missing", path.display())]
    MissingFile {
        /// Which.
        path: PathBuf,
    },
    /// A link, a pipe, a device or a directory.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// Which.
        path: PathBuf,
    },
    /// Cut off or continued.
    #[error("{} is {found} bytes long and not {recorded}: it is damaged", path.display())]
    Length {
        /// Which file.
        path: PathBuf,
        /// The length in the manifest, or the longest allowed.
        recorded: u64,
        /// The length it has.
        found: u64,
    },
    /// The manifest.
    #[error("cannot use {}", path.display())]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// Bytes are not those that were written.
    #[error("{} is damaged: bytes {} to {} are not those that were written", path.display(), range.start, range.end)]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The bytes under the checksum that is wrong.
        range: Range<u64>,
    },
    /// A section that is needed is not there.
    #[error("the snapshot {} has no state of {kind} {instance:?}", dir.display())]
    MissingSection {
        /// Which directory.
        dir: PathBuf,
        /// What it would be the state of.
        kind: String,
        /// Which one.
        instance: String,
    },
    /// A section is of another version.
    #[error(
        "the state of {kind} {instance:?} has version {found}, this Dormouse reads version {supported}; restore it with the Dormouse that wrote it"
    )]
    SectionVersion {
        /// What it is the state of.
        kind: String,
        /// Which one.
        instance: String,
        /// Its version.
        found: u32,
        /// The version that is read.
        supported: u32,
    },
    /// A section is no such state.
    #[error("cannot use the state of {kind} {instance:?}")]
    Decode {
        /// What it is the state of.
        kind: String,
        /// Which one.
        instance: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A section that nothing in the VM takes.
    #[error(
        "the snapshot holds the state of {kind} {instance:?}, which no part of this VM takes; restore it with the Dormouse and the devices that it was taken with"
    )]
    Unconsumed {
        /// What it is the state of.
        kind: String,
        /// Which one.
        instance: String,
    },
    /// Somebody asked to stop.
    #[error("checking the snapshot was cancelled")]
    Cancelled,
}
