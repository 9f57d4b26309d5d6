//! The kernel's side of a device.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_vfio_migration::testing::Trace;

use super::models::Model;
use crate::vfio::host::{Alarms, CONFIG_REGION, HostFunction, IrqIndex, MappedArea, Region};

/// Faults that a test switches on.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostFaults {
    pub reads: bool,
    pub writes: bool,
    /// Mappings that succeed before one fails.
    pub maps: Option<usize>,
    pub arm: bool,
    /// The errno of arming INTx.
    pub intx: Option<i32>,
    /// The host has no more than one message.
    pub one_message: bool,
    /// The device ignores writes to its power state.
    pub always_on: bool,
    pub disarm: bool,
    pub unmask: bool,
    /// Mappings for peers are refused.
    pub no_peers: bool,
    /// What the driver told.
    pub alarms: Alarms,
    /// The errno of a reset.
    pub reset: Option<i32>,
}

#[derive(Default)]
struct HostState {
    config: Vec<u8>,
    memory: BTreeMap<(u32, u64), u8>,
    mapped: Vec<Range<u64>>,
    armed: BTreeMap<IrqIndex, Vec<bool>>,
    faults: HostFaults,
    /// Mappings that were there when the device stopped answering.
    exposed: usize,
    region_accesses: usize,
    config_writes: Vec<u16>,
}

/// The host's side of a device.
pub struct FakeHost {
    name: String,
    model: Model,
    trace: Trace,
    state: Arc<Mutex<HostState>>,
}

impl FakeHost {
    pub fn new(model: Model, trace: &Trace) -> Arc<Self> {
        Self::named("host", model, trace)
    }

    /// As [`Self::new`], with a name for the trace.
    pub fn named(name: &str, model: Model, trace: &Trace) -> Arc<Self> {
        let state = HostState {
            config: model.config.clone(),
            ..HostState::default()
        };
        Arc::new(Self {
            name: name.to_owned(),
            model,
            trace: trace.clone(),
            state: Arc::new(Mutex::new(state)),
        })
    }

    fn state(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap()
    }

    pub fn set_faults(&self, faults: HostFaults) {
        self.state().faults = faults;
    }

    pub fn command(&self) -> u16 {
        u16::from_le_bytes(self.state().config[4..6].try_into().unwrap())
    }

    /// The device's own byte of configuration space.
    pub fn config_byte(&self, offset: usize) -> u8 {
        self.state().config[offset]
    }

    /// The device changes a byte of configuration space by itself.
    pub fn set_config_byte(&self, offset: usize, value: u8) {
        self.state().config[offset] = value;
    }

    pub fn mapped(&self) -> Vec<Range<u64>> {
        let mut mapped = self.state().mapped.clone();
        mapped.sort_unstable_by_key(|range| range.start);
        mapped
    }

    /// Which vectors of an index have an eventfd; `None` while the index is off.
    pub fn armed(&self, index: IrqIndex) -> Option<Vec<bool>> {
        self.state().armed.get(&index).cloned()
    }

    pub fn exposed(&self) -> usize {
        self.state().exposed
    }

    pub fn region_accesses(&self) -> usize {
        self.state().region_accesses
    }

    /// Offsets of all configuration writes so far.
    pub fn config_writes(&self) -> Vec<u16> {
        self.state().config_writes.clone()
    }

    fn decodes(&self, state: &HostState, region: u32) -> bool {
        let bar = if region < 6 {
            self.model.config[0x10 + 4 * region as usize]
        } else {
            0
        };
        let command = u16::from_le_bytes(state.config[4..6].try_into().unwrap());
        command & if bar & 1 != 0 { 1 } else { 2 } != 0
    }
}

/// An error as the kernel gives it.
pub(super) fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

pub(super) const EIO: i32 = 5;
pub(super) const EEXIST: i32 = 17;
pub(super) const EINVAL: i32 = 22;

impl HostFunction for FakeHost {
    fn is_mediated(&self) -> bool {
        self.model.mediated
    }

    fn is_reachable_by_peers(&self) -> bool {
        let state = self.state();
        !state.faults.no_peers && !state.mapped.is_empty()
    }

    fn alarms(&self) -> Alarms {
        self.state().faults.alarms
    }

    fn region(&self, index: u32) -> &Region {
        &self.model.regions[index as usize]
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        let end = offset + data.len() as u64;
        if state.faults.reads || end > self.region(region).size {
            return Err(errno(EIO));
        }
        if region == CONFIG_REGION {
            let at = offset as usize;
            data.copy_from_slice(&state.config[at..at + data.len()]);
            return Ok(());
        }
        if !self.decodes(&state, region) {
            return Err(errno(EIO));
        }
        state.region_accesses += 1;
        for (at, byte) in (offset..).zip(data) {
            *byte = state.memory.get(&(region, at)).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let end = offset + data.len() as u64;
        if state.faults.writes || end > self.region(region).size {
            return Err(errno(EIO));
        }
        if region != CONFIG_REGION {
            if !self.decodes(&state, region) {
                return Err(errno(EIO));
            }
            state.region_accesses += 1;
            for (at, byte) in (offset..).zip(data) {
                state.memory.insert((region, at), *byte);
            }
            return Ok(());
        }
        let at = offset as usize;
        if !(state.faults.always_on && at == 0x64) {
            state.config[at..at + data.len()].copy_from_slice(data);
        }
        state.config_writes.push(offset as u16);
        if at < 6 && end > 4 {
            let command = u16::from_le_bytes(state.config[4..6].try_into().unwrap());
            self.trace
                .note(&self.name, &format!("command {command:#06x}"));
            let memory = command & 2 != 0;
            if !memory {
                state.exposed += state.mapped.len();
            }
        } else {
            self.trace.note(&self.name, &format!("config {at:#x}"));
        }
        Ok(())
    }

    fn irq_count(&self, index: IrqIndex) -> u32 {
        self.model.irqs[index as usize]
    }

    fn arm(
        &self,
        index: IrqIndex,
        start: u32,
        triggers: &[Option<BorrowedFd<'_>>],
    ) -> io::Result<()> {
        let mut state = self.state();
        let end = start as usize + triggers.len();
        let other_mode = state.armed.keys().any(|armed| *armed != index);
        let beyond = end > self.irq_count(index) as usize || triggers.is_empty();
        let too_many = state.faults.one_message && triggers.len() > 1;
        if let (IrqIndex::Intx, Some(number)) = (index, state.faults.intx) {
            return Err(errno(number));
        }
        if state.faults.arm || other_mode || beyond || too_many {
            return Err(errno(EINVAL));
        }
        let given: Vec<bool> = triggers.iter().map(Option::is_some).collect();
        let digits: String = given
            .iter()
            .map(|given| if *given { 'x' } else { '-' })
            .collect();
        self.trace
            .note(&self.name, &format!("arm {index:?} {start} {digits}"));
        let armed = state.armed.entry(index).or_insert_with(|| vec![false; end]);
        if armed.len() < end {
            return Err(errno(EINVAL));
        }
        armed[start as usize..end].copy_from_slice(&given);
        Ok(())
    }

    fn disarm(&self, index: IrqIndex) -> io::Result<()> {
        let mut state = self.state();
        if state.faults.disarm || state.armed.remove(&index).is_none() {
            return Err(errno(EINVAL));
        }
        self.trace.note(&self.name, &format!("disarm {index:?}"));
        Ok(())
    }

    fn unmask_intx_on(
        &self,
        _trigger: BorrowedFd<'_>,
        _resample: BorrowedFd<'_>,
    ) -> io::Result<()> {
        if self.state().faults.unmask {
            return Err(errno(EINVAL));
        }
        self.trace.note(&self.name, "unmask on resample");
        Ok(())
    }

    fn mask_intx(&self, masked: bool) -> io::Result<()> {
        if !self.state().armed.contains_key(&IrqIndex::Intx) {
            return Err(errno(EINVAL));
        }
        self.trace
            .note(&self.name, if masked { "mask intx" } else { "unmask intx" });
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.trace.note(&self.name, "reset");
        self.state()
            .faults
            .reset
            .map_or(Ok(()), |number| Err(errno(number)))
    }

    fn map(&self, region: u32, area: Range<u64>, guest: u64) -> io::Result<Box<dyn MappedArea>> {
        let mut state = self.state();
        if let Some(left) = &mut state.faults.maps {
            *left = left.checked_sub(1).ok_or_else(|| errno(EINVAL))?;
        }
        let inside = area.end <= self.region(region).size;
        let range = guest..guest + (area.end - area.start);
        let overlaps = state
            .mapped
            .iter()
            .any(|m| m.start < range.end && range.start < m.end);
        if overlaps || !inside {
            return Err(errno(EEXIST));
        }
        state.mapped.push(range.clone());
        self.trace
            .note(&self.name, &format!("map {region} {:#x}", area.start));
        Ok(Box::new(FakeArea {
            range,
            state: Arc::clone(&self.state),
        }))
    }
}

struct FakeArea {
    range: Range<u64>,
    state: Arc<Mutex<HostState>>,
}

impl MappedArea for FakeArea {
    fn guest_range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl Drop for FakeArea {
    fn drop(&mut self) {
        self.state
            .lock()
            .unwrap()
            .mapped
            .retain(|range| *range != self.range);
    }
}
