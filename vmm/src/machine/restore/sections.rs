//! What a snapshot says of the machine: its sections, taken out and compared with each other and with the config.
//!
//! `Verified::check` takes them before anything is built, so that a snapshot whose parts do not belong together is refused then.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_api::config::{ConsoleMode, VmConfig};
use dormouse_devices::SavedState;
use dormouse_devices::vfio::VfioFunctionState;

use super::super::frame::BusState;
use super::super::state::{FunctionPlaceState, HostBridgeState, ONLY, PlatformState};
use super::Error;
use crate::kvm::{VcpuState, VmState};
use crate::snapshot::Snapshot;

/// A snapshot's sections that were taken out and fit each other.
pub(super) struct Sections {
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) vm: VmState,
    pub(super) platform: PlatformState,
    pub(super) bus: BusState,
    pub(super) functions: BTreeMap<String, (FunctionPlaceState, VfioFunctionState)>,
}

impl Sections {
    /// Takes the sections out of a snapshot that was verified.
    pub(super) fn take(snapshot: &Snapshot, config: &VmConfig) -> Result<Self, Error> {
        let found = snapshot.instances(<VcpuState as SavedState>::KIND).count();
        if u32::try_from(found) != Ok(config.cpus.boot_vcpus) {
            return Err(Error::VcpuCount {
                found,
                wanted: config.cpus.boot_vcpus,
            });
        }
        let vcpus = (0..found).map(|index| snapshot.state(&index.to_string()));
        let serial = (config.serial.mode != ConsoleMode::Off).then(|| snapshot.state(ONLY));
        let bridge: HostBridgeState = snapshot.state(ONLY).map_err(Error::Snapshot)?;
        Ok(Self {
            vcpus: vcpus.collect::<Result<_, _>>().map_err(Error::Snapshot)?,
            vm: snapshot.state(ONLY).map_err(Error::Snapshot)?,
            platform: PlatformState {
                serial: serial.transpose().map_err(Error::Snapshot)?,
                rtc: snapshot.state(ONLY).map_err(Error::Snapshot)?,
                acpi_pm: snapshot.state(ONLY).map_err(Error::Snapshot)?,
            },
            bus: BusState {
                root: snapshot.state(ONLY).map_err(Error::Snapshot)?,
                bridge: bridge.config,
            },
            functions: take_functions(snapshot, config)?,
        })
    }
}

/// The functions' states, if they are those of the config's devices, each with a stream or none as it should be.
fn take_functions(
    snapshot: &Snapshot,
    config: &VmConfig,
) -> Result<BTreeMap<String, (FunctionPlaceState, VfioFunctionState)>, Error> {
    let kind = <FunctionPlaceState as SavedState>::KIND;
    let saved: BTreeSet<&str> = snapshot.instances(kind).collect();
    let wanted: BTreeSet<&str> = config
        .devices
        .iter()
        .filter_map(|device| device.id.as_deref())
        .collect();
    if let Some(id) = saved.symmetric_difference(&wanted).next() {
        return Err(Error::DeviceSet {
            id: (*id).to_owned(),
        });
    }
    let streams: BTreeSet<&str> = snapshot.stream_ids().collect();
    let mut functions = BTreeMap::new();
    for id in saved {
        let place: FunctionPlaceState = snapshot.state(id).map_err(Error::Snapshot)?;
        let found = streams.contains(id);
        if found == place.discarded {
            return Err(Error::StreamSet {
                id: id.to_owned(),
                found,
            });
        }
        let state = snapshot.state(id).map_err(Error::Snapshot)?;
        functions.insert(id.to_owned(), (place, state));
    }
    Ok(functions)
}
