//! The sections of a snapshot that are the machine's own.

use dormouse_devices::{AcpiPmState, CmosRtcState, SavedState, SerialPortState};
use dormouse_pci::{Bdf, ConfigSpaceState};
use serde::{Deserialize, Serialize};

use crate::kvm::{VcpuState, VmState};

/// Name of the one instance of what a machine has once.
pub const ONLY: &str = "0";

impl SavedState for VmState {
    const KIND: &'static str = "kvm-vm";
    const VERSION: u32 = 1;
}

impl SavedState for VcpuState {
    const KIND: &'static str = "kvm-vcpu";
    const VERSION: u32 = 1;
}

/// The host bridge.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostBridgeState {
    /// Its configuration space.
    pub config: ConfigSpaceState,
}

impl SavedState for HostBridgeState {
    const KIND: &'static str = "pci-host-bridge";
    const VERSION: u32 = 1;
}

/// Where a passed-through function was.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionPlaceState {
    /// Its address on the guest's bus.
    pub bdf: Bdf,
    /// Its own state was not saved: the guest finds the device after a reset.
    pub discarded: bool,
}

impl SavedState for FunctionPlaceState {
    const KIND: &'static str = "vfio-place";
    const VERSION: u32 = 1;
}

/// The platform devices.
#[derive(Debug)]
pub struct PlatformState {
    /// `ttyS0`, if there is one.
    pub serial: Option<SerialPortState>,
    /// The clock.
    pub rtc: CmosRtcState,
    /// Power control.
    pub acpi_pm: AcpiPmState,
}
