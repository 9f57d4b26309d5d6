//! Interrupts of a passed-through function: what the guest set up, and what the device was told.
//!
//! The guest's side lives in the shadow (command register, MSI capability, MSI-X table); the host's side is [`Armed`]. They are
//! kept apart and compared: [`Interrupts::sync`] makes the second follow the first, under one lock, so that two vCPUs which
//! change vectors at once cannot leave the device with the older of their wishes.
//!
//! A vector gets its eventfd when the guest first unmasks it; until then the device keeps its interrupts pending by itself.
//! From then on a masked vector's eventfd counts, which is what keeps it pending. `VFIO_DEVICE_SET_IRQS` allows one mode at a
//! time. Lock order: `armed`, then the shadow.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_pci::regs::Command;
use dormouse_pci::{ConfigSpace, InterruptMode, MessageChange, VectorChange, VectorState};

use super::config::Config;
use super::error::InterruptError;
use super::hardware::Hardware;
use super::host::{IntxLine, IrqIndex, MsiSink};

/// The mode that the device is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    Intx,
    /// With so many messages.
    Msi(usize),
    Msix,
}

/// What the device and the host's routes were told last.
struct Armed {
    mode: Mode,
    /// How each vector is routed.
    routed: Vec<VectorState>,
    /// Vectors that the device signals through an eventfd, or that have to be when it is armed.
    used: Vec<bool>,
}

/// What the guest wants now.
struct Wanted {
    mode: Mode,
    vectors: Vec<VectorState>,
}

/// The interrupts of one function.
pub(super) struct Interrupts {
    hardware: Arc<Hardware>,
    config: Arc<Config>,
    sink: Option<Arc<dyn MsiSink>>,
    line: Option<Arc<dyn IntxLine>>,
    armed: Mutex<Armed>,
}

impl Interrupts {
    /// Interrupts of a device that was not told anything yet. `used` are vectors that were in use when the state was saved.
    pub fn new(
        hardware: Arc<Hardware>,
        config: Arc<Config>,
        sink: Option<Arc<dyn MsiSink>>,
        line: Option<Arc<dyn IntxLine>>,
        used: &[u16],
    ) -> Self {
        let count = sink.as_ref().map_or(0, |sink| sink.len());
        let mut armed = Armed {
            mode: Mode::Off,
            routed: vec![VectorState::Masked; count],
            used: vec![false; count],
        };
        for vector in used {
            if let Some(used) = armed.used.get_mut(usize::from(*vector)) {
                *used = true;
            }
        }
        Self {
            hardware,
            config,
            sink,
            line,
            armed: Mutex::new(armed),
        }
    }

    /// Makes the device and the routes follow the guest's registers after a configuration write.
    pub fn follow(&self, change: &MessageChange) {
        // The shadow forgets that a vector was pending when the guest unmasks it.
        if let Some(sink) = &self.sink {
            for vector in change.vectors.iter().filter(|vector| vector.fire) {
                sink.signal(vector.vector);
            }
        }
        self.report(self.sync(&mut self.armed()));
    }

    /// Sets everything up anew on a device that has lost it: one that was just opened or was reset.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn rearm(&self) -> Result<(), InterruptError> {
        let mut armed = self.armed();
        if let Some(index) = index_of(armed.mode) {
            self.disarm_device(index)?;
            armed.mode = Mode::Off;
        }
        self.sync(&mut armed)
    }

    /// Takes everything back and forgets what was in use, for a guest that reset the function.
    pub fn switch_off(&self) -> Result<(), InterruptError> {
        let mut armed = self.armed();
        self.leave(&mut armed)
    }

    /// After the machine stood still: no level interrupt may be lost. What a driver masked by itself is unmasked; with
    /// `may_have_lost` the guest is made to look at the device once, unless it has switched INTx off.
    pub fn resumed(&self, may_have_lost: bool) {
        let armed = self.armed();
        let (Mode::Intx, Some(line)) = (armed.mode, &self.line) else {
            return;
        };
        if let Err(source) = self.hardware.host().mask_intx(false) {
            self.hardware.report(&InterruptError::Unmask { source });
        }
        let command = self.config.shadow().command();
        let intx_disabled = command.contains(Command::INTX_DISABLE);
        if may_have_lost && !intx_disabled {
            line.raise();
        }
    }

    /// A guest read of the MSI-X table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        match self.config.shadow().msix() {
            Some(table) => table.read_table(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A guest write to the MSI-X table.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut armed = self.armed();
        let change = {
            let mut shadow = self.config.shadow();
            let table = shadow.msix_mut();
            table.and_then(|table| table.write_table(offset, data))
        };
        if let (Some(change), Some(sink)) = (change, &self.sink) {
            if change.fire {
                sink.signal(change.vector);
            }
            self.report(self.sync(&mut armed));
        }
    }

    /// A guest read of the pending bits of MSI-X.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        self.collect_pending();
        match self.config.shadow().msix() {
            Some(table) => table.read_pba(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Records in the shadow which masked vectors were signalled, for the guest to read or for a snapshot.
    pub fn collect_pending(&self) {
        let armed = self.armed();
        let Some(sink) = &self.sink else { return };
        for (vector, routed) in (0u16..).zip(&armed.routed) {
            let used = armed
                .used
                .get(usize::from(vector))
                .is_some_and(|used| *used);
            if *routed != VectorState::Masked || !used || !sink.take_pending(vector) {
                continue;
            }
            let mut shadow = self.config.shadow();
            let unmasked = match (armed.mode, u8::try_from(vector)) {
                (Mode::Msix, _) => shadow.msix_mut().and_then(|table| table.raise(vector)),
                (Mode::Msi(_), Ok(vector)) => shadow.raise_msi(vector),
                _ => None,
            };
            if unmasked.is_some() {
                // Unmasked for the guest and not routed: only a later routing can deliver it.
                sink.signal(vector);
            }
        }
    }

    /// Vectors that a device has to signal through an eventfd when it is armed again.
    pub fn used_vectors(&self) -> Vec<u16> {
        let armed = self.armed();
        let numbered = (0u16..).zip(&armed.used);
        numbered
            .filter(|(_, used)| **used)
            .map(|(vector, _)| vector)
            .collect()
    }

    fn wanted(&self, count: usize) -> Wanted {
        let shadow = self.config.shadow();
        let (mode, mut vectors) = match shadow.interrupt_mode() {
            InterruptMode::Msix => {
                let table = shadow.msix().into_iter();
                let vectors = table.flat_map(|table| (0..).map_while(|v| table.vector(v)));
                (Mode::Msix, vectors.collect())
            }
            InterruptMode::Msi => {
                let messages = self.messages_in_use(&shadow);
                (Mode::Msi(messages.min(count)), shadow.msi_vectors())
            }
            InterruptMode::Intx if self.line.is_some() => (Mode::Intx, Vec::new()),
            InterruptMode::Intx => (Mode::Off, Vec::new()),
        };
        vectors.resize(count, VectorState::Masked);
        Wanted { mode, vectors }
    }

    /// How many messages the guest enabled in its MSI control register.
    fn messages_in_use(&self, shadow: &ConfigSpace) -> usize {
        let Some(msi) = self.config.msi() else {
            return 0;
        };
        let mut control = [0; 2];
        shadow.read(msi.offset + 2, &mut control);
        let log2 = u32::from(control[0] >> 4 & 0x7);
        (1usize << log2).min(msi.vectors.into())
    }

    /// Makes the host's side equal to the guest's.
    fn sync(&self, armed: &mut Armed) -> Result<(), InterruptError> {
        let wanted = self.wanted(armed.routed.len());
        if wanted.mode != armed.mode {
            // Vectors in use are remembered over arming the device anew, and forgotten when the guest leaves a mode.
            if armed.mode != Mode::Off {
                self.leave(armed)?;
            }
            for (used, vector) in armed.used.iter_mut().zip(&wanted.vectors) {
                *used |= *vector != VectorState::Masked;
            }
            self.enter(armed, wanted.mode)?;
        }
        self.route(armed, &wanted.vectors)
    }

    fn enter(&self, armed: &mut Armed, mode: Mode) -> Result<(), InterruptError> {
        match mode {
            Mode::Off => {}
            Mode::Intx => self.enter_intx()?,
            Mode::Msi(count) => {
                armed.used[..count].fill(true);
                // A host that cannot give several messages gives one, and the device uses that for all of its causes.
                self.arm(IrqIndex::Msi, 0, &armed.used[..count])
                    .or_else(|_| self.arm(IrqIndex::Msi, 0, &armed.used[..count.min(1)]))?;
                self.config.push_msi_control(true).map_err(|source| {
                    self.take_back(IrqIndex::Msi);
                    InterruptError::MsiControl { source }
                })?;
            }
            Mode::Msix => self.arm(IrqIndex::Msix, 0, &armed.used)?,
        }
        armed.mode = mode;
        Ok(())
    }

    fn enter_intx(&self) -> Result<(), InterruptError> {
        let Some(line) = &self.line else {
            return Ok(());
        };
        let connect = |connected| {
            line.connect(connected)
                .map_err(|source| InterruptError::Line { connected, source })
        };
        connect(true)?;
        let host = self.hardware.host();
        let index = IrqIndex::Intx;
        let armed = host
            .arm(index, 0, &[Some(line.trigger())])
            .map_err(|source| InterruptError::Arm {
                index,
                start: 0,
                count: 1,
                source,
            })
            .and_then(|()| {
                host.unmask_intx_on(line.trigger(), line.resample())
                    .map_err(|source| {
                        self.take_back(index);
                        InterruptError::Unmask { source }
                    })
            });
        if armed.is_err() {
            // What failed is told; a line that stays connected to nothing does no harm.
            let _ = connect(false);
        }
        armed
    }

    /// Undoes an arming whose second half failed: the kernel would refuse every other mode while it lasts. That failure is what
    /// the caller is told.
    fn take_back(&self, index: IrqIndex) {
        let _ = self.hardware.host().disarm(index);
    }

    /// Takes the device out of its mode. Nothing stays routed, in use or pending.
    fn leave(&self, armed: &mut Armed) -> Result<(), InterruptError> {
        let nothing = vec![VectorState::Masked; armed.routed.len()];
        self.route(armed, &nothing)?;
        if let Some(index) = index_of(armed.mode) {
            if index == IrqIndex::Msi {
                self.config
                    .push_msi_control(false)
                    .map_err(|source| InterruptError::MsiControl { source })?;
            }
            self.disarm_device(index)?;
        }
        let left = std::mem::replace(&mut armed.mode, Mode::Off);
        if let (Mode::Intx, Some(line)) = (left, &self.line) {
            line.connect(false).map_err(|source| InterruptError::Line {
                connected: false,
                source,
            })?;
        }
        for (vector, used) in (0u16..).zip(&mut armed.used) {
            if let (true, Some(sink)) = (std::mem::take(used), &self.sink) {
                sink.take_pending(vector);
            }
        }
        Ok(())
    }

    /// Brings the routes to `wanted`. A vector that is unmasked for the first time gets its eventfd before its route.
    fn route(&self, armed: &mut Armed, wanted: &[VectorState]) -> Result<(), InterruptError> {
        let Some(sink) = &self.sink else {
            return Ok(());
        };
        let changes: Vec<VectorChange> = (0u16..)
            .zip(armed.routed.iter().zip(wanted))
            .filter(|(_, (before, after))| before != after)
            .map(|(vector, (before, after))| VectorChange {
                vector,
                before: *before,
                after: *after,
                fire: false,
            })
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.arm_first_used(armed, &changes)?;
        sink.apply(&changes).map_err(|source| {
            // Some may have been routed; what was not is tried again with the guest's next write.
            for change in &changes {
                let routed = sink.routed(change.vector).map(VectorState::Unmasked);
                armed.routed[usize::from(change.vector)] = routed.unwrap_or(VectorState::Masked);
            }
            InterruptError::Route {
                count: changes.len(),
                source,
            }
        })?;
        for change in &changes {
            armed.routed[usize::from(change.vector)] = change.after;
        }
        Ok(())
    }

    /// Gives eventfds to vectors that are unmasked for the first time, in as few requests as they are runs.
    fn arm_first_used(
        &self,
        armed: &mut Armed,
        changes: &[VectorChange],
    ) -> Result<(), InterruptError> {
        let new: Vec<usize> = changes
            .iter()
            .filter(|change| change.after != VectorState::Masked)
            .map(|change| usize::from(change.vector))
            .filter(|vector| !armed.used[*vector])
            .collect();
        for run in new.chunk_by(|one, next| one + 1 == *next) {
            let (start, end) = (run[0], run[run.len() - 1] + 1);
            if armed.mode == Mode::Msix {
                self.arm(IrqIndex::Msix, start, &vec![true; end - start])?;
            }
            armed.used[start..end].fill(true);
        }
        Ok(())
    }

    fn arm(&self, index: IrqIndex, start: usize, used: &[bool]) -> Result<(), InterruptError> {
        let Some(sink) = &self.sink else {
            return Ok(());
        };
        let available =
            usize::try_from(self.hardware.host().irq_count(index)).unwrap_or(usize::MAX);
        let count = used.len().min(available.saturating_sub(start));
        let triggers: Vec<Option<BorrowedFd<'_>>> = (start..start + count)
            .zip(used)
            .map(|(vector, used)| {
                let vector = u16::try_from(vector).ok().filter(|_| *used)?;
                Some(sink.eventfd(vector))
            })
            .collect();
        let start = u32::try_from(start).unwrap_or(u32::MAX);
        self.hardware
            .host()
            .arm(index, start, &triggers)
            .map_err(|source| InterruptError::Arm {
                index,
                start,
                count,
                source,
            })
    }

    fn disarm_device(&self, index: IrqIndex) -> Result<(), InterruptError> {
        let disarm: io::Result<()> = self.hardware.host().disarm(index);
        disarm.map_err(|source| InterruptError::Disarm { index, source })
    }

    /// What fails while the guest runs is the device's trouble and goes to the log.
    fn report(&self, outcome: Result<(), InterruptError>) {
        if let Err(error) = outcome {
            self.hardware.report(&error);
        }
    }

    fn armed(&self) -> MutexGuard<'_, Armed> {
        // No code panics while it holds the lock.
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index_of(mode: Mode) -> Option<IrqIndex> {
    match mode {
        Mode::Off => None,
        Mode::Intx => Some(IrqIndex::Intx),
        Mode::Msi(_) => Some(IrqIndex::Msi),
        Mode::Msix => Some(IrqIndex::Msix),
    }
}
