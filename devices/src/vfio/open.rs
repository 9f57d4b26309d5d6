//! How a function is built, fresh or from a saved state: reset, look, plan, interrupts, BARs, in this order.
//!
//! Both ways are one: the device is described by its own bytes, and a state only fills in what a guest can change.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dormouse_pci::{BarIndex, BarOffset, BarPlacement, ConfigSpace};
use dormouse_vfio_migration::{MigratableDevice, MigrationIo};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::bars::{BarSpaces, Bars};
use super::config::Config;
use super::error::{Error, InterruptError};
use super::function::VfioFunction;
use super::hardware::Hardware;
use super::host::{CONFIG_REGION, HostFunction, InterruptSupply, IrqIndex, ROM_REGION};
use super::interrupts::Interrupts;
use super::layout::Layout;
use super::plan::{DeviceShape, Plan};
use super::state::{IdentityState, VfioFunctionState, check_addresses, check_used_vectors};
use super::window::BarWindow;

/// How often a reset is tried while somebody else holds the device's lock, and how long to wait in between.
const RESET_ATTEMPTS: u32 = 20;
const RESET_BACKOFF: Duration = Duration::from_millis(5);

/// What the user says of a function.
#[derive(Debug, Clone)]
pub struct VfioSpec {
    /// How messages name the device: its id in the config and its address on the host.
    pub name: Arc<str>,
    /// BARs that are trapped wholly.
    pub trapped_bars: Vec<BarIndex>,
}

/// What a function is built from.
pub struct VfioDeps<'a> {
    /// The device.
    pub host: Arc<dyn HostFunction>,
    /// Its migration support, if the kernel could have any.
    pub migration: Option<Arc<dyn MigrationIo>>,
    /// Where its interrupts come from.
    pub interrupts: &'a dyn InterruptSupply,
    /// Where its BARs are placed.
    pub spaces: BarSpaces,
}

/// A device that was reset and looked at.
struct Opened {
    hardware: Arc<Hardware>,
    migration: Option<MigratableDevice>,
    was_reset: bool,
    identity: IdentityState,
    plan: Plan,
}

impl VfioFunction {
    /// Resets the device and gives it to a guest that finds it as after power-on.
    ///
    /// # Errors
    /// When the device does not answer, makes no sense, or the host cannot serve its interrupts.
    pub fn new(spec: &VfioSpec, deps: VfioDeps<'_>) -> Result<Self, Error> {
        let mut opened = Opened::new(spec, &deps)?;
        if opened.loses_intx()? {
            opened.plan.builder.interrupt_pin(None);
        }
        let shadow = opened.plan.builder.clone().build();
        let function = opened.complete(spec, deps, shadow, None)?;
        function.fix_up()?;
        // No guest has seen it yet.
        function.set_up_anew.store(false, Ordering::Relaxed);
        Ok(function)
    }

    /// Resets the device and describes it as `state` has it. Nothing is set up in the device yet: either its state is loaded
    /// with [`Self::load`], which does that at the right moment, or [`Self::fix_up`] has to be called.
    ///
    /// # Errors
    /// As [`Self::new`], and when the state is malformed or of another device.
    pub fn restore(
        state: &VfioFunctionState,
        spec: &VfioSpec,
        deps: VfioDeps<'_>,
    ) -> Result<Self, Error> {
        let mut opened = Opened::new(spec, &deps)?;
        let device = opened.hardware.name();
        state
            .identity
            .check(&opened.identity)
            .map_err(|source| Error::Identity {
                device: Arc::clone(device),
                source,
            })?;
        // The guest goes on seeing its pin, which is silent then.
        let _silent = opened.loses_intx()?;
        let device = opened.hardware.name();
        let shadow = opened
            .plan
            .builder
            .clone()
            .restore(&state.config)
            .map_err(|source| Error::RestoreConfig {
                device: Arc::clone(device),
                source,
            })?;
        let desired = shadow.desired_bars();
        check_addresses(&state.bars, &desired)
            .and_then(|()| check_addresses(&state.assigned_bars, &desired))
            .and_then(|()| check_used_vectors(&state.used_vectors, opened.vectors().into()))
            .map_err(|source| Error::Identity {
                device: Arc::clone(device),
                source,
            })?;
        // The machine stands still until it is resumed.
        opened.hardware.set_quiet(true);
        opened.complete(spec, deps, shadow, Some(state))
    }
}

impl Opened {
    /// Reset first, so that nothing of an earlier owner is taken for the device's own.
    fn new(spec: &VfioSpec, deps: &VfioDeps<'_>) -> Result<Self, Error> {
        let hardware = Arc::new(Hardware::new(
            Arc::clone(&spec.name),
            Arc::clone(&deps.host),
        ));
        let was_reset = reset_device(&hardware)?;
        if !was_reset {
            tracing::warn!(
                "{}: has no reset of its own: the guest may find it as its last user left it",
                hardware.name()
            );
        }
        let migration = match &deps.migration {
            Some(io) => MigratableDevice::open(hardware.name(), Arc::clone(io))?,
            None => None,
        };
        if migration.is_none() {
            tracing::debug!(
                "{}: no migration support, blocks snapshots",
                hardware.name()
            );
        }
        let config = read_config(&hardware)?;
        let device = || Arc::clone(hardware.name());
        if config.starts_with(&[0xff, 0xff]) {
            return Err(Error::Gone { device: device() });
        }
        let host = hardware.host();
        let mut region_len = [0; BarIndex::COUNT];
        for (region, len) in (0..=ROM_REGION).zip(&mut region_len) {
            *len = host.region(region).size;
        }
        let shape = DeviceShape {
            region_len,
            has_intx: host.irq_count(IrqIndex::Intx) > 0,
            has_msi: host.irq_count(IrqIndex::Msi) > 0,
            has_msix: host.irq_count(IrqIndex::Msix) > 0,
        };
        let plan = Plan::new(&config, &shape).map_err(|source| Error::Unsuitable {
            device: device(),
            source,
        })?;
        let identity = IdentityState::of(&config, host);
        Ok(Self {
            hardware,
            migration,
            was_reset,
            identity,
            plan,
        })
    }

    /// Tries the legacy interrupt. Some hosts have none for the device in spite of its pin, or share it with another that does
    /// not; the device works without it as long as its driver uses messages. Says whether that is so.
    fn loses_intx(&mut self) -> Result<bool, Error> {
        if self.plan.pin.is_none() {
            return Ok(false);
        }
        let device = || Arc::clone(self.hardware.name());
        let trigger =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
                Error::ProvideInterrupts {
                    device: device(),
                    source: error.into(),
                }
            })?;
        let index = IrqIndex::Intx;
        let host = self.hardware.host();
        let Err(refused) = host.arm(index, 0, &[Some(trigger.as_fd())]) else {
            host.disarm(index).map_err(|source| Error::Interrupts {
                device: device(),
                source: InterruptError::Disarm { index, source },
            })?;
            return Ok(false);
        };
        let errno = refused.raw_os_error().map(Errno::from_raw_os_error);
        if !matches!(errno, Some(Errno::NODEV | Errno::BUSY)) {
            // Arming it for the guest fails likewise, and says what it was for.
            return Ok(false);
        }
        tracing::warn!(
            "{}: the host cannot serve its legacy interrupt ({refused}): the guest gets none from it and has to use MSI or MSI-X",
            self.hardware.name()
        );
        self.plan.pin = None;
        Ok(true)
    }

    /// Vectors of the larger of MSI and MSI-X, which are never on together.
    fn vectors(&self) -> u16 {
        let msi = self.plan.msi.map_or(0, |msi| msi.vectors.into());
        self.plan.msix_vectors.unwrap_or(0).max(msi)
    }

    fn complete(
        self,
        spec: &VfioSpec,
        deps: VfioDeps<'_>,
        shadow: ConfigSpace,
        saved: Option<&VfioFunctionState>,
    ) -> Result<VfioFunction, Error> {
        let vectors = self.vectors();
        let Self {
            hardware,
            migration,
            was_reset,
            identity,
            plan,
        } = self;
        let unavailable = |source| Error::ProvideInterrupts {
            device: Arc::clone(hardware.name()),
            source,
        };
        let sink = match vectors {
            0 => None,
            count => Some(deps.interrupts.vectors(count).map_err(unavailable)?),
        };
        let line = match plan.pin {
            Some(pin) => deps.interrupts.intx(pin).map_err(unavailable)?,
            None => None,
        };
        let msix = shadow.msix_capability();
        let desired = shadow.desired_bars();
        let config = Arc::new(Config::new(Arc::clone(&hardware), plan, shadow));
        let used = saved.map_or(&[][..], |state| &state.used_vectors);
        let interrupts = Arc::new(Interrupts::new(
            Arc::clone(&hardware),
            Arc::clone(&config),
            sink,
            line,
            used,
        ));
        let neighbours = Arc::clone(&deps.spaces.neighbours);
        let mut bars = Bars::new(Arc::clone(&hardware), deps.spaces, saved.is_some());
        for BarPlacement { index, .. } in desired {
            let range = |at: BarOffset, len: u64| {
                (at.bar == index).then(|| at.offset.into()..u64::from(at.offset) + len)
            };
            let window = BarWindow {
                hardware: Arc::clone(&hardware),
                interrupts: Arc::clone(&interrupts),
                region: u32::try_from(index.position()).unwrap_or(ROM_REGION),
                table: msix.and_then(|msix| range(msix.table, msix.table_len())),
                pending: msix.and_then(|msix| range(msix.pba, msix.pba_len())),
            };
            let mapped = !index.is_rom() && !spec.trapped_bars.contains(&index);
            let last = saved.and_then(|state| state.bars.iter().find(|bar| bar.bar == index));
            bars.add(index, window, mapped, last.map(|last| last.address));
        }
        Ok(VfioFunction {
            layout: Layout::new(
                Arc::clone(&hardware),
                Arc::clone(&config),
                &neighbours,
                bars,
            ),
            hardware,
            config,
            interrupts,
            assigned: Mutex::new(saved.map_or_else(Vec::new, |state| state.assigned_bars.clone())),
            identity,
            migration: Mutex::new(migration),
            was_reset,
            set_up_anew: AtomicBool::new(false),
            state_lost: AtomicBool::new(saved.is_some()),
        })
    }
}

/// Resets the device. False for one that has no reset, which is used as it is.
pub(super) fn reset_device(hardware: &Hardware) -> Result<bool, Error> {
    let errno = |error: &io::Error| error.raw_os_error().map(Errno::from_raw_os_error);
    let mut attempt = 1;
    while let Err(source) = hardware.host().reset() {
        match errno(&source) {
            Some(Errno::INVAL | Errno::NOTTY) => {
                return Ok(false);
            }
            Some(Errno::AGAIN | Errno::INTR) if attempt < RESET_ATTEMPTS => {
                attempt += 1;
                thread::sleep(RESET_BACKOFF);
            }
            _ => {
                return Err(Error::Reset {
                    device: Arc::clone(hardware.name()),
                    source,
                });
            }
        }
    }
    Ok(true)
}

/// All of configuration space, 256 or 4096 bytes. A region that is shorter reads as zero at its end.
fn read_config(hardware: &Hardware) -> Result<Vec<u8>, Error> {
    let host = hardware.host();
    let available = host.region(CONFIG_REGION).size;
    let len: u16 = if available > 256 { 4096 } else { 256 };
    let mut config = vec![0; len.into()];
    for (offset, dword) in (0..len).step_by(4).zip(config.chunks_exact_mut(4)) {
        let inside = available.saturating_sub(offset.into()).min(4);
        let inside = usize::try_from(inside).unwrap_or(4);
        if inside == 0 {
            break;
        }
        host.read(CONFIG_REGION, offset.into(), &mut dword[..inside])
            .map_err(|source| Error::ReadConfig {
                device: Arc::clone(hardware.name()),
                offset,
                source,
            })?;
    }
    Ok(config)
}
