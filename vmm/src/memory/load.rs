//! Takes guest RAM back from the memory file of a snapshot.
//!
//! On demand: the file is mapped privately as RAM, and the guest reads the pages that it touches; nothing is read or checked
//! before. That needs plain private memory, and no device that does DMA; shared, huge-page and prefaulted RAM is always read
//! eagerly. Eagerly: all chunks in use are read by several threads straight into guest memory, and checked there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use dormouse_api::config::MemoryConfig;
use dormouse_arch::x86_64::layout;
use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend};

use super::parallel::each_unit;
use super::resident::data_ranges;
use super::{Observer, Ram, ram};
use crate::snapshot::Snapshot;
use crate::snapshot::checksum::{Checksum, Hasher};
use crate::snapshot::format::{CHUNK_BYTES, MemoryImage};
use crate::snapshot::verify::chunk_is_intact;

/// When RAM is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestoreMode {
    /// All of it, checked, before the guest runs.
    #[default]
    Eager,
    /// Each page when the guest first touches it. Not for VMs with passed-through devices, whose DMA needs all of RAM.
    OnDemand,
}

/// RAM that could not be taken back.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The snapshot is of a VM with other RAM.
    #[error(
        "the RAM in {} is not laid out as {size} bytes of RAM are; restore it with the memory.size it was taken with",
        path.display()
    )]
    Layout {
        /// The memory file.
        path: PathBuf,
        /// Bytes of RAM of the config.
        size: u64,
    },
    /// The host has not the memory.
    #[error("cannot provide guest RAM")]
    Provide(#[source] ram::Error),
    /// The file.
    #[error("cannot read bytes {} to {} of {}", range.start, range.end, path.display())]
    Read {
        /// The memory file.
        path: PathBuf,
        /// Which bytes.
        range: Range<u64>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("{} is damaged: bytes {} to {} are not those that were written", path.display(), range.start, range.end)]
    Damaged {
        /// The memory file.
        path: PathBuf,
        /// The bytes under the checksum that is wrong.
        range: Range<u64>,
    },
    /// Somebody asked to stop.
    #[error("the restore was cancelled")]
    Cancelled,
}

impl Ram {
    /// RAM with the content that it has in `snapshot`.
    ///
    /// An eager restore tells `observer` of every byte of RAM, in use or not; one on demand has nothing to tell.
    ///
    /// # Errors
    /// When the snapshot's RAM is not that of `config`, is damaged, or the host cannot provide it.
    pub fn restore(
        config: &MemoryConfig,
        snapshot: &Snapshot,
        mode: RestoreMode,
        observer: &dyn Observer,
    ) -> Result<Self, LoadError> {
        let (file, image) = snapshot.memory();
        if !has_layout_of(image, config.size) {
            return Err(LoadError::Layout {
                path: snapshot.memory_path(),
                size: config.size,
            });
        }
        let plain = !config.shared && !config.hugepages && !config.prefault;
        if mode == RestoreMode::OnDemand && plain {
            let offsets = image.regions.iter().map(|region| region.file_offset);
            return Self::of_image(config, file, &offsets.collect::<Vec<_>>())
                .map_err(LoadError::Provide);
        }
        let ram = Self::new(config).map_err(LoadError::Provide)?;
        fill(ram, snapshot, observer)
    }
}

fn has_layout_of(image: &MemoryImage, size: u64) -> bool {
    let wanted = layout::ram_regions(size);
    let recorded = image
        .regions
        .iter()
        .map(|region| (region.guest, region.length));
    recorded.eq(wanted.iter().map(|(base, len)| (base.raw_value(), *len)))
}

/// Reads all chunks into `ram`, which nobody else knows yet.
fn fill(ram: Ram, snapshot: &Snapshot, observer: &dyn Observer) -> Result<Ram, LoadError> {
    let (file, image) = snapshot.memory();
    let bases: Vec<HostBase> = ram
        .memory()
        .iter()
        .map(|region| HostBase(region.as_ptr()))
        .collect();
    each_unit(image.chunks(), Vec::new, |buffer, chunk| {
        if observer.is_cancelled() {
            return Err(LoadError::Cancelled);
        }
        let range = image.chunk_range(chunk);
        let outcome = match image.checksum(chunk) {
            Some(recorded) => {
                let region = image
                    .regions
                    .partition_point(|region| region.file_offset <= range.start)
                    - 1;
                let offset = range.start - image.regions[region].file_offset;
                // SAFETY: the chunk lies within its region, whose layout is that of the RAM, and no other unit has the same
                // chunk; `ram` is owned here and was shown to nobody, so this is the only reference to these bytes.
                let guest = unsafe { bases[region].bytes_mut(offset, range.end - range.start) };
                read_chunk(file, range.start, guest, recorded)
            }
            None => {
                buffer.resize(CHUNK_BYTES as usize, 0);
                chunk_is_intact(file, range.clone(), None, buffer)
            }
        };
        observer.advance(range.end - range.start);
        let path = snapshot.memory_path();
        match outcome {
            Ok(true) => Ok(()),
            Ok(false) => Err(LoadError::Damaged { path, range }),
            Err(source) => Err(LoadError::Read {
                path,
                range,
                source,
            }),
        }
    })?;
    Ok(ram)
}

/// Host address of a RAM region, for threads that each write their own chunks.
struct HostBase(*mut u8);

// SAFETY: an address; what is done with it is for the callers of `bytes_mut` to keep apart.
unsafe impl Sync for HostBase {}
// SAFETY: as above.
unsafe impl Send for HostBase {}

impl HostBase {
    /// # Safety
    /// The range must lie in the region, which must outlive the answer, and no other reference to these bytes may exist.
    unsafe fn bytes_mut<'a>(&self, offset: u64, length: u64) -> &'a mut [u8] {
        // SAFETY: within the mapping, as the caller guarantees.
        let start = unsafe { self.0.add(offset as usize) };
        // SAFETY: mapped and not referred to otherwise, as the caller guarantees.
        unsafe { std::slice::from_raw_parts_mut(start, length as usize) }
    }
}

/// Fills `guest`, which is zero, with the chunk at `start`; whether it has the recorded checksum. Pages of holes stay untouched.
fn read_chunk(file: &File, start: u64, guest: &mut [u8], recorded: Checksum) -> io::Result<bool> {
    let mut hasher = Hasher::new();
    let mut hashed = 0;
    for data in data_ranges(file, start..start + guest.len() as u64)? {
        let (first, end) = ((data.start - start) as usize, (data.end - start) as usize);
        let bytes = &mut guest[first..end];
        file.read_exact_at(bytes, data.start)?;
        hasher.update_zeros(first - hashed);
        hasher.update(bytes);
        hashed = end;
    }
    hasher.update_zeros(guest.len() - hashed);
    Ok(hasher.checksum() == recorded)
}
