//! The answers of the API.
//!
//! The names are Cloud Hypervisor's; `devices_state`, `timeline` and [`Progress`] are Dormouse's own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// What a call that succeeded gives back.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// Nothing but success.
    Done,
    /// Answer of `vmm.ping`.
    Ping(PingInfo),
    /// Answer of `vm.info`.
    Info(Box<VmInfo>),
    /// Answer of `vm.counters`.
    Counters(Counters),
    /// Answer of `vm.progress`.
    Progress(Progress),
}

/// Counters by device id and counter name.
pub type Counters = BTreeMap<String, BTreeMap<String, u64>>;

/// Which VMM answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PingInfo {
    /// Version with the commit it was built from.
    pub build_version: String,
    /// Version.
    pub version: String,
    /// Process id of the VMM.
    pub pid: i64,
    /// What it was built with.
    pub features: Vec<String>,
}

/// A VM and the state it is in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmInfo {
    /// The config, with all defaults.
    pub config: VmConfig,
    /// What the VM does.
    pub state: VmState,
    /// RAM of the guest, in bytes.
    pub memory_actual_size: u64,
    /// The devices by name; absent before the VM was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<BTreeMap<String, DeviceNode>>,
    /// The passed-through devices.
    #[serde(default)]
    pub devices_state: Vec<DeviceState>,
    /// The last snapshot or restore; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum VmState {
    /// There is a config, and no machine.
    Created,
    /// The guest runs.
    Running,
    /// The guest has powered off.
    Shutdown,
    /// vCPUs and devices are stopped.
    Paused,
    /// A debugger has stopped the guest; Dormouse has none, other VMMs of this API do.
    BreakPoint,
}

/// A device in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceNode {
    /// Name of the device.
    pub id: String,
    /// What it occupies.
    pub resources: Vec<Resource>,
    /// Name of the device it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Names of the devices that belong to it.
    pub children: Vec<String>,
    /// Its address on the guest's PCI bus, for example `0000:00:05.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
}

/// Something that a device occupies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Resource {
    /// A base address register.
    PciBar {
        /// Its index, 0 to 5.
        index: u8,
        /// Guest address or I/O port.
        base: u64,
        /// Size in bytes.
        size: u64,
        /// Kind of the register.
        type_: PciBarType,
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
}

/// Kind of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum PciBarType {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Mmio32,
    /// Memory anywhere.
    Mmio64,
}

/// A passed-through device and whether it can sleep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceState {
    /// Name of the device.
    pub id: String,
    /// Its address on the guest's PCI bus.
    pub bdf: String,
    /// The host device.
    pub path: PathBuf,
    /// The host driver it is bound to, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// What of the migration protocol the host supports for it; empty if nothing.
    pub migration_flags: Vec<MigrationFlag>,
    /// Its migration state; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_state: Option<MigrationState>,
    /// Why the VM cannot be snapshotted with it; absent if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_blocked_by: Option<String>,
    /// What is out of the ordinary with it; absent if nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<DeviceCondition>,
}

/// Something out of the ordinary with a passed-through device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DeviceCondition {
    /// It was reset and lost its state, other than by the guest, since the VM was booted or woken.
    StateLost,
    /// It had an uncorrectable error, or does not answer any more.
    Failed,
    /// The host wants it back: somebody waits for this VM to let go of it.
    WantedBack,
}

/// A part of the VFIO migration protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MigrationFlag {
    /// State can be saved and loaded while the device is stopped.
    StopCopy,
    /// The device can stop talking to its peers first.
    P2p,
    /// State can be saved while the device runs.
    PreCopy,
}

/// A state of the VFIO migration protocol, named as in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MigrationState {
    /// Only a reset helps.
    Error,
    /// Stopped.
    Stop,
    /// Running.
    Running,
    /// Stopped, its state is being read.
    StopCopy,
    /// Stopped, its state is being written.
    Resuming,
    /// Running, but it does not start DMA to its peers.
    RunningP2p,
    /// Running, its state is being read.
    PreCopy,
    /// Both.
    PreCopyP2p,
}

/// A long action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Writing a snapshot.
    Snapshot,
    /// Restoring one.
    Restore,
}

/// What a snapshot or restore did, and how long each part took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Timeline {
    /// Which of both it was.
    pub operation: Operation,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Its parts; they may overlap.
    pub phases: Vec<Phase>,
}

/// A part of a snapshot or restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// The device it was done to, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// When it began, in microseconds after the action began.
    pub start_us: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// How many bytes it moved.
    pub bytes: u64,
}

/// How far the long action is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Progress {
    /// The action; absent if none is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// What it does now; absent if none is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Bytes moved so far, of memory and devices.
    pub bytes_done: u64,
    /// Bytes to move in all, as far as known.
    pub bytes_total: u64,
    /// The same for each passed-through device.
    pub devices: Vec<DeviceProgress>,
}

/// How far a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceProgress {
    /// Name of the device.
    pub id: String,
    /// What is done to it now.
    pub phase: String,
    /// Bytes of its state moved so far.
    pub bytes_done: u64,
    /// Bytes of its state in all; absent if the device does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}
