//! One passed-through function: what guest accesses and their effects do, and the fix-ups that a device needs after it was
//! opened or reset. `open` builds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_pci::{BarIndex, BarKind, BarPlacement, ConfigEffect, PciFunction};
use dormouse_vfio_migration::MigratableDevice;

use super::bars::Bars;
use super::config::Config;
use super::error::Error;
use super::hardware::{FaultCounters, Hardware};
use super::interrupts::Interrupts;
use super::layout::Layout;
use super::open::reset_device;
use super::state::{BarAddressState, IdentityState, VfioFunctionState};
use crate::lifecycle::{Quiesced, Save};

/// A PCI function of the host in the hands of a guest.
pub struct VfioFunction {
    pub(super) hardware: Arc<Hardware>,
    pub(super) config: Arc<Config>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) layout: Arc<Layout>,
    pub(super) assigned: Mutex<Vec<BarAddressState>>,
    pub(super) identity: IdentityState,
    pub(super) migration: Mutex<Option<MigratableDevice>>,
    /// It was reset when it was opened, which not every device can be.
    pub(super) was_reset: bool,
    /// The device was set up anew, so that a level interrupt may have gone by unseen.
    pub(super) set_up_anew: AtomicBool,
    /// It has not the state that the guest's driver left in it, and the guest has not asked for that.
    pub(super) state_lost: AtomicBool,
}

impl VfioFunction {
    /// Sets the device up as the shadow says: PCI_COMMAND through the kernel, other registers that guests program, then interrupts,
    /// then the BARs that PCI_COMMAND enables. For a device that was just opened, whose state was just loaded, or that was reset.
    ///
    /// # Errors
    /// When the kernel refuses one of them. The rest is not attempted.
    pub fn fix_up(&self) -> Result<(), Error> {
        let device = || Arc::clone(self.hardware.name());
        self.config
            .push_command()
            .map_err(|source| Error::WriteCommand {
                device: device(),
                source,
            })?;
        self.config
            .write_back()
            .map_err(|(offset, source)| Error::WriteBack {
                device: device(),
                offset,
                source,
            })?;
        self.interrupts
            .rearm()
            .map_err(|source| Error::Interrupts {
                device: device(),
                source,
            })?;
        self.set_up_anew.store(true, Ordering::Relaxed);
        self.layout.set_up()
    }

    /// Gives every BAR an address, as firmware does; also after each reset of the machine from now on.
    ///
    /// # Errors
    /// The first answer of `allocate` that is one. BARs before it keep their addresses.
    pub fn assign_bars<E>(
        &self,
        mut allocate: impl FnMut(BarKind) -> Result<u64, E>,
    ) -> Result<(), E> {
        for BarPlacement { index, kind, .. } in self.config.desired_bars() {
            let address = allocate(kind)?;
            let io = matches!(kind, BarKind::Io { .. });
            let size = kind.size();
            self.assigned().retain(|assigned| assigned.bar != index);
            self.assigned().push(BarAddressState {
                bar: index,
                address,
                size,
                io,
            });
        }
        self.program_assigned_bars();
        Ok(())
    }

    /// Acts on an effect of a configuration write, on the thread of the vCPU that wrote, with no lock held.
    pub fn apply_effect(&self, effect: ConfigEffect) {
        match effect {
            ConfigEffect::LayoutChanged => self.layout.follow(),
            ConfigEffect::Msi(change) | ConfigEffect::Msix(change) => {
                self.interrupts.follow(&change);
            }
            ConfigEffect::FunctionReset => self.reset_by_guest(),
            // The write itself reached the device through the kernel, which acts on both.
            ConfigEffect::BusMasterChanged { .. }
            | ConfigEffect::InterruptDisableChanged { .. } => {}
        }
    }

    /// Puts the device and what the guest knows of it back to power-on, for a guest that resets its machine. No vCPU runs.
    ///
    /// # Errors
    /// When the device cannot be reset or set up again.
    pub fn reset(&self) -> Result<(), Error> {
        let mark = self.layout.mark();
        self.bars().unplace_all();
        self.interrupts
            .switch_off()
            .map_err(|source| Error::Interrupts {
                device: Arc::clone(self.hardware.name()),
                source,
            })?;
        let _was_reset = reset_device(&self.hardware)?;
        self.forget_guest();
        self.state_lost.store(false, Ordering::Relaxed);
        self.program_assigned_bars();
        self.fix_up()?;
        self.layout.settle(mark);
        Ok(())
    }

    /// Stops DMA of a device whose state is not saved, while memory is; the guest's view stays.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn hold_dma(&self) -> Result<(), Error> {
        let device = Arc::clone(self.hardware.name());
        self.config
            .withhold_bus_master()
            .map_err(|source| Error::WriteCommand { device, source })
    }

    /// Lets the device do DMA again if the guest allows it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn release_dma(&self) -> Result<(), Error> {
        let device = Arc::clone(self.hardware.name());
        self.config
            .push_command()
            .map_err(|source| Error::WriteCommand { device, source })
    }

    /// How messages name the device.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        self.hardware.name()
    }

    /// Whether the device lost its state since the guest booted, was woken or reset the function: the guest's driver has to
    /// recover from that.
    #[must_use]
    pub fn has_lost_state(&self) -> bool {
        self.state_lost.load(Ordering::Relaxed)
    }

    /// Whether the device ever failed to do what it was asked.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.hardware.has_failed()
    }

    /// Whether the device had an uncorrectable error since its last reset, or does not answer.
    #[must_use]
    pub fn is_out_of_order(&self) -> bool {
        self.hardware.is_silent() || self.hardware.host().alarms().failed
    }

    /// Whether other devices of the VM may reach the device's BARs by DMA.
    #[must_use]
    pub fn is_reachable_by_peers(&self) -> bool {
        self.hardware.host().is_reachable_by_peers()
    }

    /// Whether the host wants the device back.
    #[must_use]
    pub fn is_wanted_back(&self) -> bool {
        self.hardware.host().alarms().wanted_back
    }

    /// What went wrong so far.
    #[must_use]
    pub fn counters(&self) -> FaultCounters {
        self.hardware.counters()
    }

    /// Each BAR that answers now, its address, and how many bytes of it the guest reaches without an exit.
    #[must_use]
    pub fn placed_bars(&self) -> Vec<(BarIndex, u64, u64)> {
        self.bars().placed().collect()
    }

    /// The guest has set the function's reset bit, which the device was not shown. The kernel restores after a reset what its own
    /// driver had programmed; for the guest everything is as after power-on, so the device has to forget as well. A device that
    /// cannot be reset loses at least its bus mastering.
    fn reset_by_guest(&self) {
        let mark = self.layout.mark();
        self.bars().unplace_all();
        if let Err(error) = self.interrupts.switch_off() {
            self.hardware.report(&error);
        }
        match reset_device(&self.hardware) {
            Ok(true) => {}
            Ok(false) => self.hardware.report(&NoReset),
            Err(error) => self.hardware.report(&error),
        }
        self.forget_guest();
        self.state_lost.store(false, Ordering::Relaxed);
        if let Err(error) = self.fix_up() {
            self.hardware.report(&error);
        }
        self.layout.settle(mark);
    }

    /// What the shadow's reset asks for is done by the callers for the whole device.
    fn forget_guest(&self) {
        let _superseded = self.config.shadow().reset();
    }

    /// Nothing decodes at this point, so no placement follows from it.
    fn program_assigned_bars(&self) {
        let assigned = self.assigned().clone();
        for BarPlacement { index, kind, .. } in self.config.desired_bars() {
            if let Some(assigned) = assigned.iter().find(|assigned| assigned.bar == index) {
                let _no_decode = self.config.program_bar(index, kind, assigned.address);
            }
        }
    }

    fn bars(&self) -> MutexGuard<'_, Bars> {
        self.layout.bars()
    }

    fn assigned(&self) -> MutexGuard<'_, Vec<BarAddressState>> {
        // No code panics while it holds the lock.
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A failed reset by the guest, for the log.
#[derive(Debug, thiserror::Error)]
#[error("the guest resets the function, and the kernel has no reset for it")]
struct NoReset;

impl PciFunction for VfioFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if self.config.shows_pending(offset) {
            self.interrupts.collect_pending();
        }
        self.config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Vec<ConfigEffect> {
        if !self.config.gates_memory(offset) {
            return self.config.write(offset, data);
        }
        // A vCPU that reaches a mapping of a device which does not answer would be thrown out of the guest with an error, so
        // the mappings go first, and no other vCPU may bring them back before the write is done.
        let mut bars = self.bars();
        let stops = self.config.will_stop_answering(offset, data);
        if stops {
            bars.suspend();
        }
        let mut effects = self.config.write(offset, data);
        if stops && !effects.contains(&ConfigEffect::LayoutChanged) {
            effects.push(ConfigEffect::LayoutChanged);
        }
        effects
    }

    fn desired_bars(&self) -> Vec<BarPlacement> {
        self.config.desired_bars()
    }

    fn refuse_bar(&self, index: BarIndex, refused: u64, previous: u64) -> bool {
        self.config.shadow().refuse_bar(index, refused, previous)
    }
}

impl Save for VfioFunction {
    type State = VfioFunctionState;

    fn save(&self, _quiesced: &Quiesced) -> VfioFunctionState {
        self.interrupts.collect_pending();
        let desired = self.config.desired_bars();
        let answering = self.bars();
        let bars = answering.to_record().filter_map(|(bar, address)| {
            let kind = desired.iter().find(|desired| desired.index == bar)?.kind;
            let io = matches!(kind, BarKind::Io { .. });
            Some(BarAddressState {
                bar,
                address,
                size: kind.size(),
                io,
            })
        });
        VfioFunctionState {
            identity: self.identity.clone(),
            config: self.config.shadow().save(),
            bars: bars.collect(),
            assigned_bars: self.assigned().clone(),
            used_vectors: self.interrupts.used_vectors(),
        }
    }
}
