//! Why a device cannot be passed through, saved or woken. Each names the device and says what was attempted.

use std::io;
use std::sync::Arc;

use dormouse_pci::{BarIndex, BuildError, StateError};
use dormouse_vfio_migration::Failure;
use thiserror::Error as ThisError;

use super::bars::PlaceError;
use super::host::IrqIndex;
use super::state::IdentityMismatch;

/// An operation on a passed-through function that failed.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The device does not let itself be reset.
    #[error("cannot reset device {device}")]
    Reset {
        /// The device.
        device: Arc<str>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Configuration space cannot be read.
    #[error("cannot read the configuration space of device {device} at {offset:#x}")]
    ReadConfig {
        /// The device.
        device: Arc<str>,
        /// Where.
        offset: u16,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Configuration space reads as all-ones.
    #[error(
        "device {device} does not answer: its vendor id reads as all-ones; it may have been unplugged or need a reset of its bus"
    )]
    Gone {
        /// The device.
        device: Arc<str>,
    },
    /// The device cannot be modelled.
    #[error("cannot show device {device} to a guest")]
    Unsuitable {
        /// The device.
        device: Arc<str>,
        /// What is wrong with it.
        #[source]
        source: BuildError,
    },
    /// No interrupts for the device.
    #[error("cannot provide interrupts for device {device}")]
    ProvideInterrupts {
        /// The device.
        device: Arc<str>,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// PCI_COMMAND cannot be written.
    #[error("cannot write the command register of device {device}")]
    WriteCommand {
        /// The device.
        device: Arc<str>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A register that the guest programmed cannot be written again.
    #[error("cannot write back register {offset:#x} of device {device}")]
    WriteBack {
        /// The device.
        device: Arc<str>,
        /// The register.
        offset: u16,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Interrupts cannot be set up.
    #[error("cannot set up the interrupts of device {device}")]
    Interrupts {
        /// The device.
        device: Arc<str>,
        /// What failed.
        #[source]
        source: InterruptError,
    },
    /// A BAR cannot be placed where the guest expects it.
    #[error("cannot place {bar} of device {device} at {address:#x}")]
    PlaceBar {
        /// The device.
        device: Arc<str>,
        /// The BAR.
        bar: BarIndex,
        /// Where it should be.
        address: u64,
        /// What is in the way.
        #[source]
        source: PlaceError,
    },
    /// The saved state is of another device.
    #[error("the saved state does not fit device {device}")]
    Identity {
        /// The device.
        device: Arc<str>,
        /// What differs.
        #[source]
        source: IdentityMismatch,
    },
    /// The saved configuration space is malformed or of another device.
    #[error("cannot restore the configuration space of device {device}")]
    RestoreConfig {
        /// The device.
        device: Arc<str>,
        /// What is wrong with it.
        #[source]
        source: StateError,
    },
    /// The kernel's migration support failed.
    #[error(transparent)]
    Migration(#[from] Failure),
    /// A device whose state was discarded meets one that cannot be reset.
    #[error(
        "device {device} cannot be woken without its state: the kernel cannot reset it, so that it may go on writing memory where its last user left it; give the VM one that can be reset, or remove it from the VM before a snapshot"
    )]
    NotBlank {
        /// The device.
        device: Arc<str>,
    },
    /// A device whose state was saved meets one that cannot load it.
    #[error(
        "device {device} cannot load a saved state: its driver has no VFIO migration support; bind it to its vendor's VFIO driver (for instance mlx5_vfio_pci)"
    )]
    NotMigratable {
        /// The device.
        device: Arc<str>,
    },
}

/// An interrupt mode that could not be set up or left.
#[derive(Debug, ThisError)]
pub enum InterruptError {
    /// Eventfds could not be connected to the device.
    #[error("the device refused {count} vectors of {index:?} from {start}")]
    Arm {
        /// The interrupt index.
        index: IrqIndex,
        /// First vector.
        start: u32,
        /// Number of vectors.
        count: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The mode could not be left.
    #[error("the device refused to switch {index:?} off")]
    Disarm {
        /// The interrupt index.
        index: IrqIndex,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// INTx could not be connected to the guest.
    #[error("the interrupt line could not be {}", if *connected { "connected" } else { "disconnected" })]
    Line {
        /// What was attempted.
        connected: bool,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// INTx could not be told when to unmask.
    #[error("the device refused to unmask INTx")]
    Unmask {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Vectors could not be routed to the guest.
    #[error("{count} vectors could not be routed to the guest")]
    Route {
        /// How many.
        count: usize,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The device did not take its MSI control register.
    #[error("the device refused its MSI control register")]
    MsiControl {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
