//! DMA logging: which pages did the device itself write?
//!
//! Features DMA_LOGGING_START, REPORT and STOP of `linux/vfio.h`, for live migration. Drivers check
//! little of what they are asked, so the ranges are checked here, and each report stays inside one
//! range and starts at a multiple of 64 pages from its start (bits go astray otherwise). After any
//! error of a report the log is suspect: treat all memory as written.

use std::io;
use std::sync::Arc;

use crate::device::{IovaRange, MigrationIo};
use crate::migratable::MigratableDevice;

/// As many ranges as fit into the page that the kernel reads (`LOG_MAX_RANGES`).
pub const MAX_RANGES: usize = 256;
/// The smallest page that can be reported, in bytes.
const MIN_PAGE: u64 = 4096;
/// Words of the bitmap of one report: 64 KiB, enough for 2 GiB of small pages.
const BITMAP_WORDS: usize = 8192;
/// Pages of one report.
const REPORT_PAGES: u64 = BITMAP_WORDS as u64 * 64;

/// Why a log could not be started, read or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// No ranges, or more than the kernel takes.
    #[error("cannot log DMA to {count} ranges: 1 to {MAX_RANGES} are possible")]
    RangeCount {
        /// How many were given.
        count: usize,
    },
    /// A page size that cannot be reported.
    #[error("cannot log DMA in pages of {page_size} bytes")]
    PageSize {
        /// The page size in bytes.
        page_size: u64,
    },
    /// A range that is empty, does not consist of whole pages or wraps around.
    #[error(
        "cannot log DMA to {length} bytes at {iova:#x}: not a range of whole pages of {page_size}"
    )]
    Range {
        /// First address.
        iova: u64,
        /// Length in bytes.
        length: u64,
        /// The page size in bytes.
        page_size: u64,
    },
    /// Two ranges share an address.
    #[error("cannot log DMA to ranges that overlap at {iova:#x}")]
    Overlap {
        /// Where the later one starts.
        iova: u64,
    },
    /// DMA_LOGGING_START failed.
    #[error("device {device}: cannot start to log its DMA")]
    Start {
        /// The id of the device.
        device: Arc<str>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// DMA_LOGGING_REPORT failed; treat all memory as written.
    #[error("device {device}: cannot read its DMA log for {length} bytes at {iova:#x}")]
    Report {
        /// The id of the device.
        device: Arc<str>,
        /// First address of the report.
        iova: u64,
        /// Its length in bytes.
        length: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// DMA_LOGGING_STOP failed.
    #[error("device {device}: cannot stop to log its DMA")]
    Stop {
        /// The id of the device.
        device: Arc<str>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A log that runs until it is stopped or dropped; independent of the migration state.
#[must_use = "a dropped log is stopped"]
pub struct DmaLog {
    device: Arc<str>,
    io: Arc<dyn MigrationIo>,
    ranges: Vec<IovaRange>,
    page_size: u64,
    bitmap: Vec<u64>,
    running: bool,
}

impl MigratableDevice {
    /// Starts to log the pages of `page_size` bytes in `ranges` that the device writes.
    ///
    /// # Errors
    /// When the ranges are not fit for it, nothing having been asked of the device; when the
    /// device refuses; or when it uses larger pages than the ranges consist of, the log having
    /// been stopped again.
    pub fn start_dma_logging(
        &self,
        page_size: u64,
        ranges: &[IovaRange],
    ) -> Result<DmaLog, LoggingError> {
        let ranges = checked_ranges(page_size, ranges)?;
        let started = self.io().dma_logging_start(page_size, &ranges);
        let mut log = DmaLog {
            device: Arc::clone(self.id()),
            io: Arc::clone(self.io()),
            ranges,
            page_size,
            bitmap: vec![0; BITMAP_WORDS],
            running: started.is_ok(),
        };
        let device_page = started.map_err(|source| LoggingError::Start {
            device: Arc::clone(self.id()),
            source,
        })?;
        // A page that begins before a report's start would be left out of it.
        if let Err(unfit) = checked_ranges(device_page, &log.ranges) {
            log.halt()?;
            return Err(unfit);
        }
        Ok(log)
    }
}

impl DmaLog {
    /// Passes on the ranges written since the last report, in order, and clears the log.
    ///
    /// # Errors
    /// When the device does not answer: all memory of the device counts as written then.
    pub fn report(&mut self, found: &mut dyn FnMut(IovaRange)) -> Result<(), LoggingError> {
        let longest = REPORT_PAGES.saturating_mul(self.page_size);
        for index in 0..self.ranges.len() {
            let mut rest = self.ranges[index];
            while rest.length > 0 {
                let piece = IovaRange {
                    iova: rest.iova,
                    length: rest.length.min(longest),
                };
                self.report_piece(piece, found)?;
                rest.iova = rest.iova.wrapping_add(piece.length);
                rest.length -= piece.length;
            }
        }
        Ok(())
    }

    fn report_piece(
        &mut self,
        piece: IovaRange,
        found: &mut dyn FnMut(IovaRange),
    ) -> Result<(), LoggingError> {
        self.bitmap.fill(0);
        self.io
            .dma_logging_report(piece, self.page_size, &mut self.bitmap)
            .map_err(|source| LoggingError::Report {
                device: Arc::clone(&self.device),
                iova: piece.iova,
                length: piece.length,
                source,
            })?;
        for_each_run(&self.bitmap, piece, self.page_size, found);
        Ok(())
    }

    /// Stops the log.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn stop(mut self) -> Result<(), LoggingError> {
        self.halt()
    }

    fn halt(&mut self) -> Result<(), LoggingError> {
        if !std::mem::replace(&mut self.running, false) {
            return Ok(());
        }
        self.io
            .dma_logging_stop()
            .map_err(|source| LoggingError::Stop {
                device: Arc::clone(&self.device),
                source,
            })
    }
}

impl Drop for DmaLog {
    fn drop(&mut self) {
        if let Err(error) = self.halt() {
            tracing::warn!("{}: {error}", self.device);
        }
    }
}

/// The ranges sorted, if they are whole pages apart from each other.
fn checked_ranges(page_size: u64, ranges: &[IovaRange]) -> Result<Vec<IovaRange>, LoggingError> {
    if !page_size.is_power_of_two() || page_size < MIN_PAGE {
        return Err(LoggingError::PageSize { page_size });
    }
    let count = ranges.len();
    if !(1..=MAX_RANGES).contains(&count) {
        return Err(LoggingError::RangeCount { count });
    }
    for &IovaRange { iova, length } in ranges {
        let whole = iova.is_multiple_of(page_size) && length.is_multiple_of(page_size);
        if !whole || length == 0 || iova.checked_add(length).is_none() {
            return Err(LoggingError::Range {
                iova,
                length,
                page_size,
            });
        }
    }
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| range.iova);
    for pair in sorted.windows(2) {
        if pair[0].end().is_none_or(|end| end > pair[1].iova) {
            return Err(LoggingError::Overlap { iova: pair[1].iova });
        }
    }
    Ok(sorted)
}

/// Calls `found` for each run of set bits, as far as `piece` reaches.
fn for_each_run(
    bitmap: &[u64],
    piece: IovaRange,
    page_size: u64,
    found: &mut dyn FnMut(IovaRange),
) {
    let pages = piece.length / page_size;
    let mut page = 0;
    while page < pages {
        let start = page + length_of_run(bitmap, page, pages, false);
        let dirty = length_of_run(bitmap, start, pages, true);
        if dirty > 0 {
            found(IovaRange {
                iova: piece.iova + start * page_size,
                length: dirty * page_size,
            });
        }
        page = start + dirty;
    }
}

/// How many bits from `from` on are all `wanted`, word by word.
fn length_of_run(bitmap: &[u64], from: u64, pages: u64, wanted: bool) -> u64 {
    let mut page = from;
    while page < pages {
        let word = usize::try_from(page / 64)
            .ok()
            .and_then(|at| bitmap.get(at));
        let word = word.copied().unwrap_or(0);
        let other = if wanted { !word } else { word };
        let run = u64::from((other >> (page % 64)).trailing_zeros()).min(64 - page % 64);
        page += run;
        if !page.is_multiple_of(64) || run == 0 {
            break;
        }
    }
    page.min(pages) - from
}

#[cfg(test)]
mod tests;
