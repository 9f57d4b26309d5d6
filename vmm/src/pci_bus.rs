//! The PCI bus in the machine: its ways in from the guest, and who acts on what a configuration write asks for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_arch::x86_64::layout;
use dormouse_devices::pci_host::{PciConfigPorts, PciEcam};
use dormouse_devices::{BusError, Effect, Mmio, Pio};
use dormouse_pci::{
    AttachError, Bdf, ConfigEffect, HostBridge, PciFunction, RootComplex, StateError,
};
use thiserror::Error;

use crate::machine::BusState;
use crate::vcpu_thread::{Buses, LayoutEffects};

/// A bus that could not be set up.
#[derive(Debug, Error)]
pub enum Error {
    /// The ways into configuration space are taken.
    #[error("cannot place the access to PCI configuration space")]
    Place(#[source] BusError),
    /// The saved state makes no sense.
    #[error("cannot restore the PCI bus")]
    Restore(#[source] StateError),
    /// A function's address is taken.
    #[error("cannot attach a PCI function")]
    Attach(#[source] AttachError),
}

/// Acts on the effects of one function's configuration writes, with no lock of the bus held.
pub trait EffectTarget: Send + Sync {
    /// Brings about `effect`.
    fn apply(&self, effect: ConfigEffect);
}

/// Bus 0 of the machine.
pub struct PciBus {
    root: Arc<RootComplex>,
    bridge: Arc<HostBridge>,
    targets: Mutex<BTreeMap<Bdf, Arc<dyn EffectTarget>>>,
}

impl PciBus {
    /// A bus with a host bridge at 00:00.0, reachable through ports 0xCF8 and 0xCFC and through ECAM; as after power-on, or as
    /// `saved`.
    ///
    /// # Errors
    /// When something else is in their place.
    pub fn new(buses: &Buses, saved: Option<&BusState>) -> Result<Arc<Self>, Error> {
        let (root, bridge) = match saved {
            None => (RootComplex::new(), HostBridge::new()),
            Some(BusState { root, bridge }) => (
                RootComplex::restore(root).map_err(Error::Restore)?,
                HostBridge::restore(bridge).map_err(Error::Restore)?,
            ),
        };
        let (root, bridge) = (Arc::new(root), Arc::new(bridge));
        let slot = root.allocate_slot(Some(0)).expect("the bus is empty");
        root.attach(slot, Arc::clone(&bridge) as _)
            .map_err(Error::Attach)?;
        let ports = Arc::new(PciConfigPorts::new(Arc::clone(&root)));
        buses
            .pio
            .insert(Pio(layout::PCI_CONFIG_ADDRESS_PORT), 8, ports)
            .map_err(Error::Place)?;
        let ecam = Arc::new(PciEcam::new(Arc::clone(&root)));
        buses
            .mmio
            .insert(Mmio(layout::ECAM), layout::ECAM_SIZE, ecam)
            .map_err(Error::Place)?;
        Ok(Arc::new(Self {
            root,
            bridge,
            targets: Mutex::default(),
        }))
    }

    /// The configuration space of the bus.
    #[must_use]
    pub fn root(&self) -> &Arc<RootComplex> {
        &self.root
    }

    /// The host bridge at 00:00.0.
    #[must_use]
    pub fn bridge(&self) -> &HostBridge {
        &self.bridge
    }

    /// Attaches a function; `target` acts on its configuration writes from now on.
    ///
    /// # Errors
    /// When the address is taken or has no slot.
    pub fn attach(
        &self,
        bdf: Bdf,
        function: Arc<dyn PciFunction>,
        target: Arc<dyn EffectTarget>,
    ) -> Result<(), Error> {
        // The target first: the guest can reach the function as soon as it is attached.
        self.targets().insert(bdf, target);
        self.root.attach(bdf, function).map_err(|error| {
            self.targets().remove(&bdf);
            Error::Attach(error)
        })
    }

    /// Takes a function off the bus.
    pub fn detach(&self, bdf: Bdf) {
        self.root.detach(bdf);
        self.targets().remove(&bdf);
    }

    fn targets(&self) -> MutexGuard<'_, BTreeMap<Bdf, Arc<dyn EffectTarget>>> {
        // A map stays whole whatever panics elsewhere.
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LayoutEffects for PciBus {
    fn apply(&self, effect: Effect) {
        let Effect::Pci { bdf, changes } = effect else {
            return;
        };
        let target = self.targets().get(&bdf).cloned();
        if let Some(target) = target {
            for change in changes {
                target.apply(change);
            }
        }
    }
}
