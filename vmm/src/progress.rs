//! How far a snapshot or restore is, for API clients and terminals, and whether it was cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_api::response::{DeviceProgress, Operation, Progress};

use crate::control::Shared;
use crate::memory::Observer;

/// One action under way. It ends, for those who look, when this is dropped.
#[derive(Debug)]
pub struct ActionProgress {
    shared: Arc<Shared>,
}

impl ActionProgress {
    /// Begins an action. It is cancelled from the start if its request was while it waited.
    #[must_use]
    pub fn begin(shared: &Arc<Shared>, operation: Operation) -> Self {
        shared.cancellation().begin();
        shared.publish_progress(|progress| {
            *progress = Progress {
                operation: Some(operation),
                ..Progress::default()
            };
        });
        Self {
            shared: Arc::clone(shared),
        }
    }

    /// Begins a phase of `bytes_total` bytes, 0 if nobody knows.
    pub fn begin_phase(&self, name: &str, bytes_total: u64) {
        self.shared.publish_progress(|progress| {
            progress.phase = Some(name.to_owned());
            progress.bytes_done = 0;
            progress.bytes_total = bytes_total;
        });
    }

    /// A device has moved `bytes_done` bytes so far.
    pub fn device(&self, id: &str, phase: &str, bytes_done: u64, bytes_total: Option<u64>) {
        self.shared.publish_progress(|progress| {
            let devices = &mut progress.devices;
            let known = devices.iter().position(|device| device.id == id);
            let index = known.unwrap_or_else(|| {
                devices.push(DeviceProgress {
                    id: id.to_owned(),
                    phase: String::new(),
                    bytes_done: 0,
                    bytes_total: None,
                });
                devices.len() - 1
            });
            let device = &mut devices[index];
            phase.clone_into(&mut device.phase);
            device.bytes_done = bytes_done;
            device.bytes_total = bytes_total;
            progress.bytes_done = progress
                .devices
                .iter()
                .map(|device| device.bytes_done)
                .sum();
        });
    }

    /// Set when somebody asks the action to stop.
    #[must_use]
    pub fn cancelled(&self) -> &AtomicBool {
        self.shared.cancellation().of_running()
    }
}

impl Drop for ActionProgress {
    fn drop(&mut self) {
        self.shared.publish_progress(|progress| {
            progress.operation = None;
            progress.phase = None;
        });
    }
}

impl Observer for ActionProgress {
    fn advance(&self, bytes: u64) {
        self.shared
            .publish_progress(|progress| progress.bytes_done += bytes);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled().load(Ordering::Relaxed)
    }
}
