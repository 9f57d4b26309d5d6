//! The migration protocol of one device with every state change on the timeline.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use dormouse_vfio_migration::{DataFd, IovaRange, MigFlags, MigState, MigrationIo};

use super::timeline::Stopwatch;

/// Passes everything on to the device and records how long each state change took.
pub struct TimedMigration {
    id: String,
    device: Arc<dyn MigrationIo>,
    stopwatch: Stopwatch,
}

impl TimedMigration {
    /// Records on `stopwatch` what device `id` does.
    pub fn new(id: String, device: Arc<dyn MigrationIo>, stopwatch: Stopwatch) -> Self {
        Self {
            id,
            device,
            stopwatch,
        }
    }
}

impl MigrationIo for TimedMigration {
    fn probe(&self) -> io::Result<Option<MigFlags>> {
        self.device.probe()
    }

    fn get_state(&self) -> io::Result<MigState> {
        self.device.get_state()
    }

    fn set_state(&self, target: MigState) -> io::Result<Option<Box<dyn DataFd>>> {
        let start = Instant::now();
        let answer = self.device.set_state(target);
        self.stopwatch
            .record(&format!("to {target}"), Some(&self.id), start, 0);
        answer
    }

    fn data_size(&self) -> io::Result<u64> {
        self.device.data_size()
    }

    fn reset(&self) -> io::Result<()> {
        let start = Instant::now();
        let answer = self.device.reset();
        self.stopwatch.record("reset", Some(&self.id), start, 0);
        answer
    }

    fn has_dma_logging(&self) -> io::Result<bool> {
        self.device.has_dma_logging()
    }

    fn dma_logging_start(&self, page_size: u64, ranges: &[IovaRange]) -> io::Result<u64> {
        self.device.dma_logging_start(page_size, ranges)
    }

    fn dma_logging_report(
        &self,
        range: IovaRange,
        page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()> {
        self.device.dma_logging_report(range, page_size, bitmap)
    }

    fn dma_logging_stop(&self) -> io::Result<()> {
        self.device.dma_logging_stop()
    }
}
