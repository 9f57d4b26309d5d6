//! The machine's passed-through functions: opened on the host, attached to the bus, and taken off it again.

use std::path::PathBuf;
use std::sync::Arc;

use dormouse_api::config::{DeviceConfig, PlatformConfig, SnapshotPolicy, VmConfig};
use dormouse_devices::vfio::{
    self, BarSpaces, SnapshotBlock, VfioDeps, VfioFunction, VfioSpec, migration,
};
use dormouse_pci::{BarIndex, BarKind, Bdf, ConfigEffect, SlotError};
use dormouse_vfio_migration::MigrationIo;
use dormouse_vfio_migration::group::{GroupError, PeerDma};
use thiserror::Error;

use super::Machine;
use super::build::Host;
use super::frame::Frame;
use super::function_source::{FunctionSource, OpenFunction};
use super::timed_migration::TimedMigration;
use super::timeline::Stopwatch;
use crate::interrupts::SlotInterrupts;
use crate::pci_bus::{self, EffectTarget, PciBus};
use crate::vfio::{Placement, Request, Roots};
use crate::windows::{self, Window};

/// A device that could not be given to the guest.
#[derive(Debug, Error)]
pub enum Error {
    /// The host does not let go of it.
    #[error("cannot open the devices")]
    Open(#[source] crate::vfio::Error),
    /// The PCI bus has no place for it.
    #[error("cannot give device {id} a slot on the PCI bus")]
    Slot {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: SlotError,
    },
    /// The snapshot knows nothing of it.
    #[error("the snapshot holds no state of device {id}")]
    Unknown {
        /// The device.
        id: String,
    },
    /// It cannot be used as a PCI function.
    #[error("cannot pass device {id} through")]
    Function {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: vfio::Error,
    },
    /// No room for a BAR.
    #[error("cannot find a guest address for a BAR of device {id}")]
    Bar {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: windows::Error,
    },
    /// The bus refused it.
    #[error("cannot attach device {id}")]
    Attach {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: pci_bus::Error,
    },
}

/// A function on the bus.
pub struct Attached {
    /// Its id in the VM.
    pub id: String,
    /// Its sysfs directory on the host.
    pub path: PathBuf,
    /// Where the guest finds it.
    pub bdf: Bdf,
    /// What a snapshot does with it.
    pub policy: SnapshotPolicy,
    /// The function.
    pub function: Arc<VfioFunction>,
    opened: OpenFunction,
}

impl Attached {
    /// The host's driver of the device.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.opened.driver.as_deref()
    }

    /// Why the machine cannot be saved with the device, considering what its config allows.
    #[must_use]
    pub fn snapshot_block(&self) -> Option<SnapshotBlock> {
        let block = self.function.blocks_snapshot()?;
        let allowed = self.policy == SnapshotPolicy::DiscardState && block.allows_discarding();
        (!allowed).then_some(block)
    }

    /// The migration protocol of the device, asked directly: for people who look at a VM.
    #[must_use]
    pub fn migration(&self) -> &dyn MigrationIo {
        self.opened.migration.as_ref()
    }
}

/// Acts on a function's configuration writes.
struct Effects(Arc<VfioFunction>);

impl EffectTarget for Effects {
    fn apply(&self, effect: ConfigEffect) {
        self.0.apply_effect(effect);
    }
}

/// All passed-through functions of a machine. Dropping it takes them off the bus, which would keep them alive otherwise.
pub struct Passthrough {
    functions: Vec<Attached>,
    pci: Arc<PciBus>,
    /// Last, so that the host's side of the machine goes after its functions.
    _source: Box<dyn FunctionSource>,
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        for attached in &self.functions {
            self.pci.detach(attached.bdf);
        }
    }
}

/// A device that is open on the host and has a place on the bus, but is not a function yet.
pub struct Candidate<'a> {
    config: &'a DeviceConfig,
    id: String,
    opened: OpenFunction,
    bdf: Bdf,
    /// The same for all functions of the machine.
    spaces: BarSpaces,
}

impl Candidate<'_> {
    /// Its id in the VM.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn spec(&self) -> VfioSpec {
        let host = self.opened.path.display();
        let trapped = self.config.x_exclude_mmap_bars.iter();
        VfioSpec {
            name: format!("{} ({host})", self.id).into(),
            trapped_bars: trapped.filter_map(|&bar| BarIndex::new(bar).ok()).collect(),
        }
    }

    /// Makes the function by `build`, attached to nothing.
    pub fn function(
        &self,
        frame: &Frame,
        stopwatch: &Stopwatch,
        build: impl FnOnce(&VfioSpec, VfioDeps<'_>) -> Result<VfioFunction, vfio::Error>,
    ) -> Result<Arc<VfioFunction>, Error> {
        let interrupts = SlotInterrupts::new(&frame.router, self.bdf.device());
        let migration: Arc<dyn MigrationIo> = Arc::new(TimedMigration::new(
            self.id.clone(),
            Arc::clone(&self.opened.migration),
            stopwatch.clone(),
        ));
        let deps = VfioDeps {
            host: Arc::clone(&self.opened.host),
            migration: Some(migration),
            interrupts: &interrupts,
            spaces: self.spaces.clone(),
        };
        let function = build(&self.spec(), deps);
        function.map(Arc::new).map_err(|source| Error::Function {
            id: self.id.clone(),
            source,
        })
    }
}

impl Passthrough {
    /// Opens the devices of `config`, maps RAM for their DMA, and lets `build` make each a function. A device goes to its recorded
    /// place on the bus (`recorded`), the one that its config names, or the first free one.
    pub fn new(
        config: &VmConfig,
        frame: &Frame,
        host: &Host,
        recorded: impl Fn(&str) -> Option<Bdf>,
        mut build: impl FnMut(&Candidate<'_>) -> Result<Arc<VfioFunction>, Error>,
    ) -> Result<Self, Error> {
        let platform: PlatformConfig = config.platform_or_default();
        let source = host.functions.source(Placement {
            vm: Arc::clone(&frame.vm),
            ram: frame.ram.clone(),
            slots: Arc::clone(&frame.slots),
            iommufd: platform.iommufd,
            peer_to_peer: platform.vfio_p2p_dma,
            roots: Roots::default(),
            events: host.events.clone(),
        });
        let ids = ids(config);
        let requests = requests(&ids, config);
        let opened = source.open_functions(&requests).map_err(Error::Open)?;
        let mut passthrough = Self {
            functions: Vec::new(),
            pci: Arc::clone(&frame.pci),
            _source: source,
        };
        // Devices with a fixed place first, so that nobody else takes it.
        let mut candidates = Vec::new();
        for ((id, config), opened) in ids.iter().zip(&config.devices).zip(opened) {
            let fixed = recorded(id).map(Bdf::device).or(config.pci_device_id);
            candidates.push((fixed, id, config, opened));
        }
        let order = |fixed: bool| {
            candidates
                .iter()
                .filter(move |candidate| candidate.0.is_some() == fixed)
        };
        let spaces = BarSpaces::new(
            Arc::clone(&frame.buses.pio),
            Arc::clone(&frame.buses.mmio),
            Arc::clone(&frame.windows) as _,
        );
        let mut placed = Vec::new();
        for (fixed, id, config, opened) in order(true).chain(order(false)) {
            let bdf = frame
                .pci
                .root()
                .allocate_slot(*fixed)
                .map_err(|source| Error::Slot {
                    id: id.to_string(),
                    source,
                })?;
            placed.push(Candidate {
                config,
                id: id.to_string(),
                opened: opened.clone(),
                bdf,
                spaces: spaces.clone(),
            });
        }
        for candidate in placed {
            let function = build(&candidate)?;
            passthrough.attach(candidate, function)?;
        }
        Ok(passthrough)
    }

    fn attach(
        &mut self,
        candidate: Candidate<'_>,
        function: Arc<VfioFunction>,
    ) -> Result<(), Error> {
        let effects = Arc::new(Effects(Arc::clone(&function)));
        self.pci
            .attach(candidate.bdf, Arc::clone(&function) as _, effects)
            .map_err(|source| Error::Attach {
                id: candidate.id.clone(),
                source,
            })?;
        self.functions.push(Attached {
            path: candidate.config.path.clone().unwrap_or_default(),
            policy: candidate.config.snapshot,
            id: candidate.id,
            bdf: candidate.bdf,
            function,
            opened: candidate.opened,
        });
        Ok(())
    }

    /// The functions.
    #[must_use]
    pub fn functions(&self) -> &[Attached] {
        &self.functions
    }

    /// Whether the functions can reach each other by DMA. The config may forbid it, and so may the kernel (with an iommufd before
    /// Linux 6.19): what counts is whether a BAR was mapped for it.
    #[must_use]
    pub fn peer_dma(&self) -> PeerDma {
        let mut functions = self.functions.iter();
        if functions.any(|attached| attached.function.is_reachable_by_peers()) {
            PeerDma::Possible
        } else {
            PeerDma::Impossible
        }
    }

    /// The functions alone, as the group operations take them.
    #[must_use]
    pub fn group(&self) -> Vec<&VfioFunction> {
        self.functions
            .iter()
            .map(|attached| attached.function.as_ref())
            .collect()
    }
}

impl Machine {
    /// Why the machine cannot be paused, and so not be saved, with these devices.
    #[must_use]
    pub fn pause_blocked_by(&self) -> Option<GroupError> {
        let passthrough = &self.passthrough;
        migration::check_pausable(&passthrough.group(), passthrough.peer_dma()).err()
    }
}

/// The ids of the devices of `config`, in their order there.
pub fn ids(config: &VmConfig) -> Vec<String> {
    let ids = config.devices.iter().map(|device| device.id.clone());
    ids.map(Option::unwrap_or_default).collect()
}

/// What is asked of the host for the devices of `config`, whose ids are `ids`.
pub fn requests<'a>(ids: &'a [String], config: &'a VmConfig) -> Vec<Request<'a>> {
    std::iter::zip(ids, &config.devices)
        .map(|(id, device)| Request {
            id,
            path: device.path.as_deref().unwrap_or_else(|| "".as_ref()),
        })
        .collect()
}

/// Gives every BAR of a fresh function an address, as firmware does.
pub fn assign_bars(
    id: &str,
    function: &VfioFunction,
    windows: &windows::Windows,
) -> Result<(), Error> {
    function
        .assign_bars(|kind| {
            let window = match Window::of(kind) {
                // A host or guest with few address bits has no 64-bit window.
                Window::Mmio64 if windows.range(Window::Mmio64).is_empty() => Window::Mmio32,
                window => window,
            };
            windows
                .allocate(window, BarKind::size(kind))
                .map(|range| range.start)
        })
        .map_err(|source| Error::Bar {
            id: id.to_owned(),
            source,
        })
}
