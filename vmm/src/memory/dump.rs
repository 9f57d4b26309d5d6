//! Writes guest RAM into the memory file of a snapshot.
//!
//! Only pages that were touched are looked at, and only those that are not zero are written: the rest are holes. Several
//! threads share the work in units of a few MiB; each starts the write-back of a unit when it is done with it, so that the
//! disk works from the start. Checksums are computed on guest memory itself, right after its pages were written, when the
//! processor still has them in its cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use dormouse_devices::lifecycle::Quiesced;
use thiserror::Error;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::parallel::each_unit;
use super::resident::{PAGE_BYTES, ResidentPages};
use super::{Observer, Ram};
use crate::snapshot::checksum::{Checksum, Hasher};
use crate::snapshot::format::{
    CHUNK_BYTES, ChecksumRun, Checksums, MEMORY_FILE, MemoryImage, MemoryRegion,
};

/// Bytes of RAM that a thread takes at a time; one read of the page table covers it.
const UNIT_BYTES: u64 = 8 * CHUNK_BYTES;

/// RAM that could not be written.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The page table or the memory file of the VM.
    #[error(
        "cannot find out which pages are in use (/proc/self/pagemap, SEEK_DATA of the memory file)"
    )]
    FindPages(#[source] io::Error),
    /// The file.
    #[error("cannot make the file {length} bytes long")]
    SetLength {
        /// The length.
        length: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("cannot write {length} bytes at offset {offset}; is the disk full?")]
    Write {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody asked to stop.
    #[error("the snapshot was cancelled")]
    Cancelled,
}

/// RAM that was written.
#[derive(Debug)]
pub struct Dumped {
    /// What is in the file.
    pub image: MemoryImage,
    /// Bytes that were not zero.
    pub written_bytes: u64,
}

/// Writes `ram` into `file`, which is empty. The data are not synced.
///
/// `observer` hears of every byte of RAM, in use or not.
///
/// # Errors
/// When pages cannot be examined or written, or the observer cancels.
pub fn dump(
    ram: &Ram,
    file: &File,
    quiesced: &Quiesced,
    observer: &dyn Observer,
) -> Result<Dumped, DumpError> {
    let pagemap = ResidentPages::open_pagemap().map_err(DumpError::FindPages)?;
    let mut end = 0u64;
    let mut sources = Vec::new();
    for region in ram.memory().iter() {
        let source = Source::new(
            region,
            &pagemap,
            quiesced,
            end.next_multiple_of(CHUNK_BYTES),
        );
        end = source.place.file_end();
        sources.push(source);
    }
    file.set_len(end).map_err(|source| DumpError::SetLength {
        length: end,
        source,
    })?;
    let done = each_unit(end.div_ceil(UNIT_BYTES), Done::default, |done, unit| {
        let start = unit * UNIT_BYTES;
        for source in &sources {
            if observer.is_cancelled() {
                return Err(DumpError::Cancelled);
            }
            let within = source.intersection(start..start + UNIT_BYTES);
            observer.advance(within.len() as u64);
            source.dump(within, file, done)?;
        }
        Ok(())
    })?;
    let written_bytes = done.iter().map(|done| done.written_bytes).sum();
    let image = MemoryImage {
        file: MEMORY_FILE.to_owned(),
        length: end,
        chunk_bytes: CHUNK_BYTES,
        regions: sources.into_iter().map(|source| source.place).collect(),
        checksums: runs(done.into_iter().flat_map(|done| done.checksums).collect()),
    };
    Ok(Dumped {
        image,
        written_bytes,
    })
}

/// What one thread has done.
#[derive(Default)]
struct Done {
    checksums: Vec<(u64, Checksum)>,
    written_bytes: u64,
}

/// A region of RAM on its way into the file.
struct Source<'a> {
    bytes: &'a [u8],
    resident: ResidentPages<'a>,
    place: MemoryRegion,
}

impl<'a> Source<'a> {
    fn new(
        region: &'a GuestRegionMmap,
        pagemap: &'a File,
        _quiesced: &'a Quiesced,
        file_offset: u64,
    ) -> Self {
        let length = region.len();
        // SAFETY: the region is mapped readable for as long as it is borrowed; nothing writes to it meanwhile, because the
        // token says that vCPUs and devices stand still, and it is lent for as long as the slice lives.
        let bytes = unsafe { std::slice::from_raw_parts(region.as_ptr(), length as usize) };
        Self {
            bytes,
            resident: ResidentPages::of(region, pagemap),
            place: MemoryRegion {
                guest: region.start_addr().raw_value(),
                length,
                file_offset,
            },
        }
    }

    /// The part of the region, by offsets in it, that is in a part of the file.
    fn intersection(&self, in_file: Range<u64>) -> Range<usize> {
        let place = &self.place;
        let start = in_file.start.clamp(place.file_offset, place.file_end());
        let end = in_file.end.clamp(start, place.file_end());
        (start - place.file_offset) as usize..(end - place.file_offset) as usize
    }

    fn dump(&self, within: Range<usize>, file: &File, done: &mut Done) -> Result<(), DumpError> {
        if within.is_empty() {
            return Ok(());
        }
        let resident = self
            .resident
            .ranges(within.clone())
            .map_err(DumpError::FindPages)?;
        let written_before = done.written_bytes;
        for start in within.clone().step_by(CHUNK_BYTES as usize) {
            let chunk = start..within.end.min(start + CHUNK_BYTES as usize);
            let runs = self.used_runs(&resident, &chunk);
            if !runs.is_empty() {
                self.write_chunk(&chunk, &runs, file, done)?;
            }
        }
        if done.written_bytes != written_before {
            let start = self.place.file_offset + within.start as u64;
            start_writeback(file, start, within.len());
        }
        Ok(())
    }

    /// The pages of `chunk` that are resident and not zero; neighbours joined.
    fn used_runs(&self, resident: &[Range<usize>], chunk: &Range<usize>) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let first = resident.partition_point(|range| range.end <= chunk.start);
        for range in resident[first..]
            .iter()
            .take_while(|range| range.start < chunk.end)
        {
            let pages = range.start.max(chunk.start)..range.end.min(chunk.end);
            for start in pages.step_by(PAGE_BYTES) {
                let end = start + PAGE_BYTES;
                if is_zero(&self.bytes[start..end]) {
                    continue;
                }
                match runs.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => runs.push(start..end),
                }
            }
        }
        runs
    }

    fn write_chunk(
        &self,
        chunk: &Range<usize>,
        runs: &[Range<usize>],
        file: &File,
        done: &mut Done,
    ) -> Result<(), DumpError> {
        let mut hasher = Hasher::new();
        let mut hashed = chunk.start;
        for run in runs {
            let bytes = &self.bytes[run.clone()];
            let offset = self.place.file_offset + run.start as u64;
            file.write_all_at(bytes, offset)
                .map_err(|source| DumpError::Write {
                    offset,
                    length: bytes.len(),
                    source,
                })?;
            hasher.update_zeros(run.start - hashed);
            hasher.update(bytes);
            hashed = run.end;
            done.written_bytes += bytes.len() as u64;
        }
        hasher.update_zeros(chunk.end - hashed);
        let number = (self.place.file_offset + chunk.start as u64) / CHUNK_BYTES;
        done.checksums.push((number, hasher.checksum()));
        Ok(())
    }
}

/// Whether a page, or less, is zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    bytes
        .chunks(PAGE_BYTES)
        .all(|page| page == &ZEROS[..page.len()])
}

/// Asks the kernel to begin writing to the disk. Without it all of it would wait for the sync at the end.
fn start_writeback(file: &File, start: u64, length: usize) {
    // SAFETY: starts writing pages of an open file; no memory is involved.
    let answer = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            start as i64,
            length as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
    if answer != 0 {
        // File systems need not have it; an error of the disk is reported by the sync.
        tracing::trace!("no early write-back: {}", io::Error::last_os_error());
    }
}

/// Joins the checksums of neighbouring chunks.
fn runs(mut checksums: Vec<(u64, Checksum)>) -> Vec<ChecksumRun> {
    checksums.sort_unstable_by_key(|(chunk, _)| *chunk);
    let mut runs: Vec<ChecksumRun> = Vec::new();
    for (chunk, sum) in checksums {
        match runs.last_mut() {
            Some(run) if run.first_chunk + run.sums.0.len() as u64 == chunk => run.sums.0.push(sum),
            _ => runs.push(ChecksumRun {
                first_chunk: chunk,
                sums: Checksums(vec![sum]),
            }),
        }
    }
    runs
}
