//! The scripted device itself: state machine, faults, contents.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::data::ScriptedData;
use super::fault::Fault;
use super::trace::{Step, Trace};
use crate::device::{DataFd, IovaRange, MigrationIo};
use crate::state::{FdEffect, MigFlags, MigState, path};
use crate::sys::signals::is_blocked;

/// Loads longer than this are refused, so that a test cannot eat the machine.
const LONGEST_LOAD: usize = 64 << 20;
/// The bytes that name the model, for [`Acceptance::Checked`].
const HEADER_BYTES: usize = 8;

/// The state inside a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// That many equal bytes, which take no memory; `u64::MAX` for an endless stream.
    Filled(u64),
}

impl Contents {
    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Filled(length) => *length,
        }
    }

    /// Copies from `position`, at most `room.len()` bytes.
    pub(super) fn copy_to(&self, position: u64, room: &mut [u8]) -> usize {
        let left = self.length().saturating_sub(position);
        let bytes = usize::try_from(left).map_or(room.len(), |left| left.min(room.len()));
        match self {
            Self::Bytes(all) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX);
                if let Some(rest) = all.get(start..) {
                    room[..bytes].copy_from_slice(&rest[..bytes]);
                }
            }
            Self::Filled(_) => room[..bytes].fill(0xa5),
        }
        bytes
    }
}

/// What a device makes of the bytes it is given to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// As mtty: the first 8 bytes must equal its own (else EFAULT), not more bytes than its own
    /// state has (ENOMEM), and on leaving RESUMING not less (EINVAL).
    Checked,
    /// As mlx5: everything.
    Anything,
}

pub(super) struct Model {
    pub(super) state: MigState,
    flags: Option<MigFlags>,
    pub(super) contents: Contents,
    pub(super) incoming: Vec<u8>,
    acceptance: Acceptance,
    faults: Vec<(Fault, u32)>,
    /// Counts sessions; a descriptor of another session is dead.
    pub(super) session: u64,
    pub(super) session_open: bool,
    pub(super) longest_read: usize,
    pub(super) open_fds: usize,
    pub(super) largest_transfer: usize,
    data_size: Result<u64, i32>,
    logged: Option<Vec<IovaRange>>,
    logging_page: u64,
    unguarded_sets: usize,
}

impl Model {
    /// Takes the first fault that `matches` and has uses left.
    pub(super) fn take_fault(&mut self, matches: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let index = self.faults.iter().position(|(fault, _)| matches(fault))?;
        let (fault, left) = &mut self.faults[index];
        let fault = *fault;
        if *left != super::FOREVER {
            *left -= 1;
            if *left == 0 {
                self.faults.remove(index);
            }
        }
        Some(fault)
    }

    /// The nearest position at or after `from` where a read or write fault waits.
    pub(super) fn next_fault_position(&self, from: u64, reading: bool) -> Option<u64> {
        let position = |fault: &Fault| match *fault {
            Fault::Read { at, .. } | Fault::ResetAtRead { at } if reading => Some(at),
            Fault::Write { at, .. } | Fault::ShortWrite { at } if !reading => Some(at),
            _ => None,
        };
        let waiting = self.faults.iter().filter_map(|(fault, _)| position(fault));
        waiting.filter(|at| *at >= from).min()
    }

    pub(super) fn reset(&mut self) {
        self.state = MigState::Running;
        self.session_open = false;
        self.incoming.clear();
    }

    pub(super) fn accept(&mut self, bytes: &[u8]) -> Result<(), i32> {
        let header_before = self.incoming.len() < HEADER_BYTES;
        let limit = match (self.acceptance, &self.contents) {
            (Acceptance::Checked, contents) => contents.length(),
            (Acceptance::Anything, _) => LONGEST_LOAD as u64,
        };
        let total = self.incoming.len() + bytes.len();
        if total > LONGEST_LOAD || total as u64 > limit {
            return Err(libc::ENOMEM);
        }
        self.incoming.extend_from_slice(bytes);
        let checked = self.acceptance == Acceptance::Checked;
        if checked && header_before && total >= HEADER_BYTES {
            let mut own = [0; HEADER_BYTES];
            let known = self.contents.copy_to(0, &mut own);
            if self.incoming[..known] != own[..known] {
                return Err(libc::EFAULT);
            }
        }
        Ok(())
    }

    fn hop(&mut self, to: MigState) -> Result<FdEffect, i32> {
        let effect = FdEffect::of_hop(self.state, to);
        if (self.state, to) == (MigState::Resuming, MigState::Stop) {
            let whole = self.incoming.len() as u64 == self.contents.length();
            if self.acceptance == Acceptance::Checked && !whole {
                return Err(libc::EINVAL);
            }
            self.contents = Contents::Bytes(std::mem::take(&mut self.incoming));
        }
        match effect {
            FdEffect::NewReader | FdEffect::NewWriter => {
                self.session += 1;
                self.session_open = true;
                self.incoming.clear();
            }
            FdEffect::Ends => self.session_open = false,
            FdEffect::None | FdEffect::Continues => {}
        }
        self.state = to;
        Ok(effect)
    }

    fn walk(&mut self, to: MigState) -> Result<FdEffect, i32> {
        let flags = self.flags.ok_or(libc::ENOTTY)?;
        let hops = path(self.state, to, flags).ok_or(libc::EINVAL)?;
        let fault = self.take_fault(|fault| match fault {
            Fault::Set { to: target, .. }
            | Fault::SetBreaks { to: target, .. }
            | Fault::SetWithoutFd { to: target } => *target == to,
            _ => false,
        });
        let allowed = match fault {
            Some(Fault::Set { hops, .. }) => hops,
            Some(Fault::SetBreaks { .. }) => 0,
            _ => usize::MAX,
        };
        let mut effect = FdEffect::None;
        for hop in hops.into_iter().take(allowed) {
            effect = self.hop(hop)?;
        }
        match fault {
            Some(Fault::Set { errno, .. }) => Err(errno),
            Some(Fault::SetBreaks { errno, .. }) => {
                self.state = MigState::Error;
                self.session_open = false;
                Err(errno)
            }
            Some(_) => Ok(FdEffect::None),
            None => Ok(effect),
        }
    }
}

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
        let contents: Vec<u8> = b"MODEL_A!".iter().copied().chain(0..92).collect();
        let model = Model {
            state: MigState::Running,
            flags: Some(flags),
            contents: Contents::Bytes(contents),
            incoming: Vec::new(),
            acceptance: Acceptance::Checked,
            faults: Vec::new(),
            session: 0,
            session_open: false,
            longest_read: usize::MAX,
            open_fds: 0,
            largest_transfer: 0,
            data_size: Ok(100),
            logged: None,
            logging_page: 4096,
            unguarded_sets: 0,
        };
        Arc::new(Self {
            shared: Arc::new(Shared {
                id: id.to_owned(),
                trace: trace.clone(),
                model: Mutex::new(model),
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

    /// SETs that were issued while the thread could be interrupted by SIGTERM.
    #[must_use]
    pub fn unguarded_sets(&self) -> usize {
        self.shared.lock().unguarded_sets
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
        if !is_blocked(libc::SIGTERM) {
            model.unguarded_sets += 1;
        }
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
