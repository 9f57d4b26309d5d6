//! The manifest of a snapshot directory, version 1: what it says and how it is written.
//!
//! `manifest.json` is one JSON object of three members in a fixed frame: the format version, the checksum of the third
//! member's bytes, and the manifest proper. The frame is compared byte by byte and the checksum before anything is
//! parsed, so every flipped byte is found, and a newer Dormouse may add members without making old manifests look
//! damaged. What the manifest says is checked in `check`; the directory as a whole in `reader`.

use dormouse_api::config::{ConfigError, VmConfig};
use dormouse_api::response::Timeline;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

use super::checksum::{self, Checksum};

/// The version of the directory's layout that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the manifest until it is complete.
pub const PARTIAL_MANIFEST_FILE: &str = "manifest.json.partial";
/// Name of the file with the state of the machine and its devices.
pub const STATE_FILE: &str = "state.json";
/// Name of the memory file.
pub const MEMORY_FILE: &str = "memory.bin";
/// Kind of the sections that are streams of passed-through devices.
pub const STREAM_KIND: &str = "vfio-stream";
/// Version of those sections: the bytes are the device's own.
pub const STREAM_VERSION: u32 = 1;
/// Bytes of RAM under one checksum, and alignment of regions in the memory file.
pub const CHUNK_BYTES: u64 = 2 << 20;
/// Longest manifest, in bytes: checksums of about 8 TiB of memory in use.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Longest section of the state file, in bytes.
pub const MAX_STATE_BYTES: u64 = 64 << 20;
/// Longest stream of a device, in bytes.
pub const MAX_STREAM_BYTES: u64 = 1 << 40;

/// Name of the file with the stream of device `id`.
#[must_use]
pub fn stream_file(id: &str) -> String {
    format!("vfio-{id}.bin")
}

/// A manifest that cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not what the frame demands.
    #[error(
        "byte {at} is not what a snapshot's manifest has there: it is damaged or something else"
    )]
    Frame {
        /// Where the first wrong byte is.
        at: usize,
    },
    /// Written by another version.
    #[error(
        "its format version is {found}, this Dormouse reads version {FORMAT_VERSION}; restore it with the Dormouse that wrote it"
    )]
    Version {
        /// The version it says.
        found: u32,
    },
    /// Damaged.
    #[error("bytes {start} to {end} are damaged: their checksum is {found}, not {recorded}")]
    Checksum {
        /// First byte of the body.
        start: usize,
        /// End of the body.
        end: usize,
        /// The checksum that it says.
        recorded: Checksum,
        /// The checksum that it has.
        found: Checksum,
    },
    /// The body is no manifest.
    #[error("it does not describe a snapshot")]
    Parse(#[source] serde_json::Error),
    /// The config in it cannot be used.
    #[error("the VM config in it cannot be used")]
    Config(#[source] ConfigError),
    /// A field says something that cannot be.
    #[error("{field} is {value}, but it {rule}")]
    Field {
        /// Which field.
        field: String,
        /// What it says, escaped.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// It cannot be written.
    #[error("it cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
}

/// What a snapshot holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the Dormouse that took it.
    pub dormouse_version: String,
    /// Architecture of the VM, as Rust names it.
    pub arch: String,
    /// When it was completed, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The VM's config, as written: [`Manifest::parse_config`] reads it.
    pub config: Box<RawValue>,
    /// The parts of the state file in their order there, then the devices' streams.
    pub sections: Vec<Section>,
    /// The memory file.
    pub memory: MemoryImage,
    /// How the snapshot was taken.
    pub timeline: Timeline,
}

impl Manifest {
    /// The VM's config.
    ///
    /// # Errors
    /// When it has a field that this Dormouse does not know or cannot use.
    pub fn parse_config(&self) -> Result<VmConfig, ConfigError> {
        VmConfig::from_file_bytes(self.config.get().as_bytes())
    }
}

/// A piece of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// What it is the state of.
    pub kind: String,
    /// Which one of that kind; empty if there can be one only.
    pub instance: String,
    /// Version of its layout.
    pub version: u32,
    /// The file it is in. Sections of one file follow each other in the manifest's order, without gaps.
    pub file: String,
    /// Its length in bytes.
    pub length: u64,
    /// Checksum of its bytes.
    pub checksum: Checksum,
}

/// The memory file: RAM at its offsets, pages that are zero left out as holes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryImage {
    /// Its name.
    pub file: String,
    /// Its length in bytes, holes included.
    pub length: u64,
    /// Bytes under one checksum.
    pub chunk_bytes: u64,
    /// Where each region of RAM is.
    pub regions: Vec<MemoryRegion>,
    /// The checksums of all chunks that are not zero.
    pub checksums: Vec<ChecksumRun>,
}

impl MemoryImage {
    /// The part of the file that `chunk` covers: a region's last chunk may be short.
    ///
    /// Empty if there is no such chunk.
    #[must_use]
    pub fn chunk_range(&self, chunk: u64) -> std::ops::Range<u64> {
        let start = chunk.saturating_mul(CHUNK_BYTES);
        let region = self
            .regions
            .partition_point(|region| region.file_offset <= start)
            .checked_sub(1);
        let end = region.map_or(start, |index| self.regions[index].file_end());
        start..end.clamp(start, start.saturating_add(CHUNK_BYTES))
    }

    /// Number of chunks.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.length.div_ceil(CHUNK_BYTES)
    }

    /// The checksum of `chunk`; none if it is zero.
    #[must_use]
    pub fn checksum(&self, chunk: u64) -> Option<Checksum> {
        let after = self
            .checksums
            .partition_point(|run| run.first_chunk <= chunk);
        let run = self.checksums.get(after.checked_sub(1)?)?;
        let index = usize::try_from(chunk - run.first_chunk).ok()?;
        run.sums.0.get(index).copied()
    }

    /// Bytes of RAM in chunks that are not zero: no more than this is in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.checksums
            .iter()
            .flat_map(|run| (run.first_chunk..).take(run.sums.0.len()))
            .map(|chunk| self.chunk_range(chunk))
            .map(|range| range.end - range.start)
            .sum()
    }
}

/// A region of RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRegion {
    /// Its guest-physical address.
    pub guest: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Where it starts in the file.
    pub file_offset: u64,
}

impl MemoryRegion {
    /// Where it ends in the file. For regions that were checked.
    #[must_use]
    pub fn file_end(&self) -> u64 {
        self.file_offset.saturating_add(self.length)
    }
}

/// Checksums of neighbouring chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChecksumRun {
    /// Number of the first of them: its file offset divided by the chunk size.
    pub first_chunk: u64,
    /// One checksum for each.
    pub sums: Checksums,
}

/// Several checksums; as text one string of all their digits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checksums(pub Vec<Checksum>);

impl Serialize for Checksums {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write;
        let mut text = String::with_capacity(self.0.len() * checksum::TEXT_LEN);
        for sum in &self.0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "{sum}");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Checksums {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.as_bytes()
            .chunks(checksum::TEXT_LEN)
            .map(|digits| {
                Checksum::from_text(digits).ok_or_else(|| {
                    D::Error::custom("checksums have 16 lower-case hexadecimal digits each")
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

const BEFORE_VERSION: &[u8] = b"{\n\"dormouse_snapshot\": ";
const BEFORE_CHECKSUM: &[u8] = b",\n\"checksum\": \"";
const BEFORE_BODY: &[u8] = b"\",\n\"manifest\": ";
const AFTER_BODY: &[u8] = b"\n}\n";

/// The bytes of the manifest file.
///
/// # Errors
/// When a string in it is no JSON.
pub fn render(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let body = serde_json::to_vec_pretty(manifest).map_err(ManifestError::Encode)?;
    let version = FORMAT_VERSION.to_string();
    let checksum = Checksum::of(&body).to_string();
    Ok([
        BEFORE_VERSION,
        version.as_bytes(),
        BEFORE_CHECKSUM,
        checksum.as_bytes(),
        BEFORE_BODY,
        &body,
        AFTER_BODY,
    ]
    .concat())
}

/// Reads the bytes of a manifest file. What the manifest says is not checked yet.
///
/// # Errors
/// When it is damaged, of another version, or no manifest.
pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let mut frame = Frame { bytes, at: 0 };
    frame.expect(BEFORE_VERSION)?;
    let digits = frame.rest().iter().take_while(|byte| byte.is_ascii_digit());
    let digits = frame.take(digits.count())?;
    let version = std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok());
    match version {
        Some(FORMAT_VERSION) if digits == FORMAT_VERSION.to_string().as_bytes() => {}
        Some(found) if found != FORMAT_VERSION => return Err(ManifestError::Version { found }),
        _ => {
            return Err(ManifestError::Frame {
                at: BEFORE_VERSION.len(),
            });
        }
    }
    frame.expect(BEFORE_CHECKSUM)?;
    let at = frame.at;
    let recorded =
        Checksum::from_text(frame.take(checksum::TEXT_LEN)?).ok_or(ManifestError::Frame { at })?;
    frame.expect(BEFORE_BODY)?;
    let start = frame.at;
    let body = frame
        .rest()
        .strip_suffix(AFTER_BODY)
        .ok_or_else(|| ManifestError::Frame {
            at: first_wrong_at_end(bytes),
        })?;
    let found = Checksum::of(body);
    if found != recorded {
        return Err(ManifestError::Checksum {
            start,
            end: start + body.len(),
            recorded,
            found,
        });
    }
    serde_json::from_slice(body).map_err(ManifestError::Parse)
}

/// Where `bytes` first differ from the frame's end, if they are as long as they should be.
fn first_wrong_at_end(bytes: &[u8]) -> usize {
    let start = bytes.len().saturating_sub(AFTER_BODY.len());
    let equal = bytes[start..].iter().zip(AFTER_BODY);
    start + equal.take_while(|(a, b)| a == b).count()
}

/// Walks over the fixed parts.
struct Frame<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Frame<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    fn expect(&mut self, wanted: &[u8]) -> Result<(), ManifestError> {
        let equal = self.rest().iter().zip(wanted).take_while(|(a, b)| a == b);
        let equal = equal.count();
        self.at += equal;
        if equal < wanted.len() {
            return Err(ManifestError::Frame { at: self.at });
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ManifestError> {
        let taken = self.rest().get(..count).ok_or(ManifestError::Frame {
            at: self.bytes.len(),
        })?;
        self.at += count;
        Ok(taken)
    }
}
