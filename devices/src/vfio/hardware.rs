//! The device behind its host traits, with its failures kept: what a guest access does when the device does not answer.
//!
//! A device that has gone answers with errors. A guest sees all-ones then, as behind a real bus; the owner sees
//! [`Hardware::has_failed`] and a rate-limited line in the log, so that a failure is never taken for data. Here is also the
//! switch that keeps the host off the BARs while the device must not be touched. Every other part of the function goes through
//! this one to reach regions.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::host::{CONFIG_REGION, HostFunction};
use crate::guest_warn;

/// After so many failures in a row a device counts as one that does not answer.
const SILENT_AFTER: u32 = 16;

/// What went wrong with a function so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounters {
    /// Requests that the host or the device answered with an error.
    pub host_errors: u64,
    /// BAR accesses that were refused because the device had to be left alone.
    pub refused_accesses: u64,
}

/// One device of the host.
pub(super) struct Hardware {
    name: Arc<str>,
    host: Arc<dyn HostFunction>,
    quiet: AtomicBool,
    host_errors: AtomicU64,
    refused_accesses: AtomicU64,
    /// Requests since the last that succeeded.
    failures_in_a_row: AtomicU32,
    /// Its vendor id read as all-ones.
    gone: AtomicBool,
}

impl Hardware {
    pub fn new(name: Arc<str>, host: Arc<dyn HostFunction>) -> Self {
        Self {
            name,
            host,
            quiet: AtomicBool::new(false),
            host_errors: AtomicU64::new(0),
            refused_accesses: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// How messages name the device.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The host's side, for everything that is not a guest access.
    pub fn host(&self) -> &dyn HostFunction {
        &*self.host
    }

    /// Keeps everybody off the BARs, or lets them at them again.
    pub fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::SeqCst);
    }

    /// Whether the device ever failed to do what it was asked.
    pub fn has_failed(&self) -> bool {
        self.host_errors.load(Ordering::Relaxed) > 0
    }

    /// Whether the device does not answer any more.
    pub fn is_silent(&self) -> bool {
        let failures = self.failures_in_a_row.load(Ordering::Relaxed);
        failures >= SILENT_AFTER || self.gone.load(Ordering::Relaxed)
    }

    pub fn counters(&self) -> FaultCounters {
        FaultCounters {
            host_errors: self.host_errors.load(Ordering::Relaxed),
            refused_accesses: self.refused_accesses.load(Ordering::Relaxed),
        }
    }

    /// Counts and logs a failure that a guest access ran into.
    pub fn report(&self, error: &dyn Error) {
        self.host_errors.fetch_add(1, Ordering::Relaxed);
        guest_warn!("{}: {}", self.name, Chain(error));
    }

    /// As [`Self::report`] for an access that the device did not answer. One that answers nothing is told once.
    fn unanswered(&self, error: &dyn Error) {
        let before = self.failures_in_a_row.load(Ordering::Relaxed);
        if before >= SILENT_AFTER {
            self.host_errors.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
        self.report(error);
        if before + 1 == SILENT_AFTER {
            self.tell_silence(error);
        }
    }

    fn answered(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// A device that was unplugged, or fell off its bus, reads as all-ones.
    fn look_at_vendor(&self, vendor: &[u8]) {
        let gone = vendor.iter().all(|byte| *byte == 0xff);
        if self.gone.swap(gone, Ordering::Relaxed) != gone && gone {
            self.tell_silence(&AllOnes);
        }
    }

    fn tell_silence(&self, error: &dyn Error) {
        guest_warn!(
            "{}: the device does not answer any more, further failures are only counted: {}",
            self.name,
            Chain(error)
        );
    }

    /// Reads configuration space for the guest; all-ones if the device does not answer. Bytes beyond the device's space are zero.
    /// Says whether it did answer.
    pub fn read_config(&self, offset: u16, data: &mut [u8]) -> bool {
        let inside = self.config_bytes(offset, data.len());
        let (present, absent) = data.split_at_mut(inside);
        absent.fill(0);
        if present.is_empty() {
            return true;
        }
        match self.host.read(CONFIG_REGION, offset.into(), present) {
            Ok(()) => {
                self.answered();
                if offset == 0 && present.len() >= 2 {
                    self.look_at_vendor(&present[..2]);
                }
                true
            }
            Err(source) => {
                data.fill(0xff);
                self.unanswered(&ConfigRead { offset, source });
                false
            }
        }
    }

    /// Writes configuration space for the guest. Says whether the device took it; bytes beyond its space go nowhere.
    #[must_use = "what the device did not take must not be mirrored"]
    pub fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let inside = self.config_bytes(offset, data.len());
        if inside == 0 {
            return true;
        }
        let data = &data[..inside];
        match self.host.write(CONFIG_REGION, offset.into(), data) {
            Ok(()) => {
                self.answered();
                true
            }
            Err(source) => {
                self.unanswered(&ConfigWrite { offset, source });
                false
            }
        }
    }

    /// Reads a BAR or the ROM; all-ones where there is nothing, nobody answers, or the device must be left alone.
    pub fn read_region(&self, region: u32, offset: u64, data: &mut [u8]) {
        if !self.may_touch(region, offset, data.len()) {
            data.fill(0xff);
        } else if let Err(source) = self.host.read(region, offset, data) {
            data.fill(0xff);
            self.unanswered(&RegionRead {
                region,
                offset,
                source,
            });
        } else {
            self.answered();
        }
    }

    /// Writes a BAR.
    pub fn write_region(&self, region: u32, offset: u64, data: &[u8]) {
        if !self.may_touch(region, offset, data.len()) || !self.host.region(region).writable {
            return;
        }
        match self.host.write(region, offset, data) {
            Ok(()) => self.answered(),
            Err(source) => self.unanswered(&RegionWrite {
                region,
                offset,
                source,
            }),
        }
    }

    /// A BAR decodes a power of two, of which the region may be only the beginning.
    fn may_touch(&self, region: u32, offset: u64, len: usize) -> bool {
        if self.quiet.load(Ordering::SeqCst) {
            self.refused_accesses.fetch_add(1, Ordering::Relaxed);
            guest_warn!(
                "{}: refused an access to region {region} at {offset:#x}: the device is stopped",
                self.name
            );
            return false;
        }
        let end = u64::try_from(len)
            .ok()
            .and_then(|len| offset.checked_add(len));
        end.is_some_and(|end| end <= self.host.region(region).size)
    }

    fn config_bytes(&self, offset: u16, len: usize) -> usize {
        let left = self
            .host
            .region(CONFIG_REGION)
            .size
            .saturating_sub(offset.into());
        usize::try_from(left).map_or(len, |left| left.min(len))
    }
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut error = self.0;
        while let Some(source) = error.source() {
            write!(f, ": {source}")?;
            error = source;
        }
        Ok(())
    }
}

/// An answer that is none, for the log.
#[derive(Debug, thiserror::Error)]
#[error("its vendor id reads as all-ones")]
struct AllOnes;

/// A failed access of the guest, for the log.
#[derive(Debug, thiserror::Error)]
#[error("cannot read configuration space at {offset:#x}, the guest sees all-ones")]
struct ConfigRead {
    offset: u16,
    source: io::Error,
}

/// A failed access of the guest, for the log.
#[derive(Debug, thiserror::Error)]
#[error("cannot write configuration space at {offset:#x}")]
struct ConfigWrite {
    offset: u16,
    source: io::Error,
}

/// A failed access of the guest, for the log.
#[derive(Debug, thiserror::Error)]
#[error("cannot read region {region} at {offset:#x}, the guest sees all-ones")]
struct RegionRead {
    region: u32,
    offset: u64,
    source: io::Error,
}

/// A failed access of the guest, for the log.
#[derive(Debug, thiserror::Error)]
#[error("cannot write region {region} at {offset:#x}")]
struct RegionWrite {
    region: u32,
    offset: u64,
    source: io::Error,
}
