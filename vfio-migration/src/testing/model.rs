//! The model behind a scripted device: where it is, what is in it, and which faults wait.

use super::fault::{FOREVER, Fault};
use crate::device::IovaRange;
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
    pub(super) flags: Option<MigFlags>,
    pub(super) contents: Contents,
    pub(super) incoming: Vec<u8>,
    pub(super) acceptance: Acceptance,
    pub(super) faults: Vec<(Fault, u32)>,
    /// Counts sessions; a descriptor of another session is dead.
    pub(super) session: u64,
    pub(super) session_open: bool,
    pub(super) longest_read: usize,
    pub(super) open_fds: usize,
    pub(super) largest_transfer: usize,
    pub(super) data_size: Result<u64, i32>,
    pub(super) logged: Option<Vec<IovaRange>>,
    pub(super) logging_page: u64,
    pub(super) unguarded_calls: usize,
}

impl Model {
    pub(super) fn new(flags: MigFlags) -> Self {
        let contents = b"MODEL_A!".iter().copied().chain(0..92).collect();
        Self {
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
            unguarded_calls: 0,
        }
    }

    /// Takes the first fault that `matches` and has uses left.
    pub(super) fn take_fault(&mut self, matches: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let index = self.faults.iter().position(|(fault, _)| matches(fault))?;
        let (fault, left) = &mut self.faults[index];
        let fault = *fault;
        if *left != FOREVER {
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

    pub(super) fn count_unguarded(&mut self) {
        self.unguarded_calls += usize::from(!is_blocked(libc::SIGTERM));
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

    pub(super) fn walk(&mut self, to: MigState) -> Result<FdEffect, i32> {
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
