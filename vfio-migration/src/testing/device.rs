//! The scripted device: what tests set and ask, and what the sessions call.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::data::ScriptedData;
use super::fault::Fault;
use super::model::{Acceptance, Contents, Model};
use super::trace::{Step, Trace};
use crate::device::{DataFd, IovaRange, MigrationIo};
use crate::state::{FdEffect, MigFlags, MigState};

/// What a device and its data descriptors share.
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) trace: Trace,
    model: Mutex<Model>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, step: Step) {
        self.trace.push(&self.id, step);
    }
}

/// A device that does what a test tells it to.
pub struct ScriptedDevice {
    shared: Arc<Shared>,
}

impl ScriptedDevice {
    /// A RUNNING device with 100 bytes of state, of which the first 8 are the model's header.
    #[must_use]
    pub fn new(id: &str, flags: MigFlags, trace: &Trace) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                id: id.to_owned(),
                trace: trace.clone(),
                model: Mutex::new(Model::new(flags)),
            }),
        })
    }

    /// Lets a fault wait for its moment, once.
    pub fn inject(&self, fault: Fault) {
        self.inject_times(fault, 1);
    }

    /// Lets a fault strike so many times.
    pub fn inject_times(&self, fault: Fault, times: u32) {
        if times > 0 {
            self.shared.lock().faults.push((fault, times));
        }
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        self.shared.lock().faults.clear();
    }

    /// Puts the device into a state behind everybody's back; its session is over.
    pub fn force_state(&self, state: MigState) {
        let mut model = self.shared.lock();
        model.reset();
        model.state = state;
    }

    /// Sets what the device can do; `None` for a device without migration.
    pub fn set_flags(&self, flags: Option<MigFlags>) {
        self.shared.lock().flags = flags;
    }

    /// Sets the state inside the device.
    pub fn set_contents(&self, contents: Contents) {
        self.shared.lock().contents = contents;
    }

    /// Sets what the device makes of bytes to load.
    pub fn set_acceptance(&self, acceptance: Acceptance) {
        self.shared.lock().acceptance = acceptance;
    }

    /// Sets the most bytes that one read gives.
    pub fn set_longest_read(&self, bytes: usize) {
        self.shared.lock().longest_read = bytes.max(1);
    }

    /// Sets the answer of MIG_DATA_SIZE, or its errno.
    pub fn set_data_size(&self, size: Result<u64, i32>) {
        self.shared.lock().data_size = size;
    }

    /// Sets the smallest page that the device can log, in bytes.
    pub fn set_logging_page(&self, bytes: u64) {
        self.shared.lock().logging_page = bytes;
    }

    /// The present state.
    #[must_use]
    pub fn current_state(&self) -> MigState {
        self.shared.lock().state
    }

    /// The state inside the device.
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.shared.lock().contents.clone()
    }

    /// Data descriptors not closed yet.
    #[must_use]
    pub fn open_fds(&self) -> usize {
        self.shared.lock().open_fds
    }

    /// The largest buffer that any read or write offered, in bytes.
    #[must_use]
    pub fn largest_transfer(&self) -> usize {
        self.shared.lock().largest_transfer
    }

    /// SETs and writes that were issued while SIGTERM could have interrupted the thread.
    #[must_use]
    pub fn unguarded_calls(&self) -> usize {
        self.shared.lock().unguarded_calls
    }

    fn logging(&self, verb: &'static str) -> io::Result<()> {
        let fault = self.shared.lock().take_fault(
            |fault| matches!(fault, Fault::Logging { verb: wanted, .. } if *wanted == verb),
        );
        if let Some(Fault::Logging { errno, .. }) = fault {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.shared.push(Step::Logging(verb));
        Ok(())
    }
}

impl MigrationIo for ScriptedDevice {
    fn probe(&self) -> io::Result<Option<MigFlags>> {
        Ok(self.shared.lock().flags)
    }

    fn get_state(&self) -> io::Result<MigState> {
        let mut model = self.shared.lock();
        let fault = model.take_fault(|fault| matches!(fault, Fault::Get { .. }));
        if let Some(Fault::Get { errno }) = fault {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.shared.push(Step::Get(model.state));
        Ok(model.state)
    }

    fn set_state(&self, to: MigState) -> io::Result<Option<Box<dyn DataFd>>> {
        let mut model = self.shared.lock();
        model.count_unguarded();
        let from = model.state;
        let result = model.walk(to);
        let now = model.state;
        match result {
            Ok(effect) => {
                self.shared.push(Step::Set { from, to });
                let writer = match effect {
                    FdEffect::NewReader => false,
                    FdEffect::NewWriter => true,
                    _ => return Ok(None),
                };
                model.open_fds += 1;
                let data = ScriptedData::new(Arc::clone(&self.shared), model.session, writer);
                Ok(Some(Box::new(data)))
            }
            Err(errno) => {
                self.shared.push(Step::SetFailed {
                    from,
                    to,
                    errno,
                    now,
                });
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn data_size(&self) -> io::Result<u64> {
        let size = self.shared.lock().data_size;
        size.map_err(io::Error::from_raw_os_error)
    }

    fn reset(&self) -> io::Result<()> {
        let mut model = self.shared.lock();
        let fault =
            model.take_fault(|fault| matches!(fault, Fault::Reset { .. } | Fault::IdleReset));
        match fault {
            Some(Fault::Reset { errno }) => {
                self.shared.push(Step::ResetFailed(errno));
                Err(io::Error::from_raw_os_error(errno))
            }
            Some(_) => Ok(()),
            None => {
                model.reset();
                self.shared.push(Step::Reset);
                Ok(())
            }
        }
    }

    fn has_dma_logging(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn dma_logging_start(&self, page_size: u64, ranges: &[IovaRange]) -> io::Result<u64> {
        self.logging("start")?;
        let mut model = self.shared.lock();
        model.logged = Some(ranges.to_vec());
        Ok(page_size.max(model.logging_page))
    }

    /// The first page of each range is always dirty.
    fn dma_logging_report(
        &self,
        range: IovaRange,
        _page_size: u64,
        bitmap: &mut [u64],
    ) -> io::Result<()> {
        self.logging("report")?;
        let logged = self.shared.lock().logged.clone();
        let ranges = logged.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        if ranges.iter().any(|logged| logged.iova == range.iova) {
            bitmap[0] |= 1;
        }
        Ok(())
    }

    fn dma_logging_stop(&self) -> io::Result<()> {
        self.logging("stop")?;
        self.shared.lock().logged = None;
        Ok(())
    }
}
