//! Passed-through devices as API clients see them.

use std::collections::BTreeMap;

use dormouse_api::response::{
    DeviceCondition, DeviceNode, DeviceState, MigrationFlag, MigrationState, PciBarType, Resource,
};
use dormouse_devices::vfio::VfioFunction;
use dormouse_pci::{BarKind, PciFunction};
use dormouse_vfio_migration::group::GroupError;
use dormouse_vfio_migration::{MigFlags, MigState};

use crate::machine::{Attached, Machine};

/// Every function with its place on the bus and its BARs.
pub(super) fn tree(machine: &Machine) -> BTreeMap<String, DeviceNode> {
    machine
        .functions()
        .iter()
        .map(|attached| (attached.id.clone(), node(attached)))
        .collect()
}

fn node(attached: &Attached) -> DeviceNode {
    let placements = attached.function.desired_bars();
    let bars = placements
        .into_iter()
        .filter(|bar| !bar.index.is_rom())
        .filter_map(|bar| {
            let (type_, prefetchable) = match bar.kind {
                BarKind::Io { .. } => (PciBarType::Io, false),
                BarKind::Mem32 { prefetchable, .. } => (PciBarType::Mmio32, prefetchable),
                BarKind::Mem64 { prefetchable, .. } => (PciBarType::Mmio64, prefetchable),
            };
            Some(Resource::PciBar {
                index: u8::try_from(bar.index.position()).ok()?,
                base: bar.address,
                size: bar.kind.size(),
                type_,
                prefetchable,
            })
        });
    DeviceNode {
        id: attached.id.clone(),
        resources: bars.collect(),
        parent: None,
        children: Vec::new(),
        pci_bdf: Some(format!("0000:{}", attached.bdf)),
    }
}

/// What the host knows of every function. Migration support is asked of the kernel anew.
pub(super) fn states(machine: &Machine) -> Vec<DeviceState> {
    let group = machine.pause_blocked_by();
    let functions = machine.functions().iter();
    functions
        .map(|attached| state(attached, group.as_ref()))
        .collect()
}

/// `group` is why the VM cannot be paused, which names one of its devices.
fn state(attached: &Attached, group: Option<&GroupError>) -> DeviceState {
    let migration = attached.migration();
    let flags = migration.probe().ok().flatten();
    let blocked = attached.snapshot_block();
    DeviceState {
        id: attached.id.clone(),
        bdf: format!("0000:{}", attached.bdf),
        path: attached.path.clone(),
        driver: attached.driver().map(str::to_owned),
        migration_flags: flags.map(migration_flags).unwrap_or_default(),
        migration_state: flags
            .and_then(|_| migration.get_state().ok())
            .map(migration_state),
        snapshot_blocked_by: blocked.map(|block| block.to_string()).or_else(|| {
            group
                .filter(|group| names(group, attached))
                .map(ToString::to_string)
        }),
        conditions: conditions(&attached.function),
    }
}

fn names(group: &GroupError, attached: &Attached) -> bool {
    matches!(group, GroupError::NoPeerToPeer { device, .. } if device == attached.function.name())
}

fn conditions(function: &VfioFunction) -> Vec<DeviceCondition> {
    [
        (function.has_lost_state(), DeviceCondition::StateLost),
        (function.is_out_of_order(), DeviceCondition::Failed),
        (function.is_wanted_back(), DeviceCondition::WantedBack),
    ]
    .into_iter()
    .filter_map(|(applies, condition)| applies.then_some(condition))
    .collect()
}

fn migration_flags(flags: MigFlags) -> Vec<MigrationFlag> {
    [
        (MigFlags::STOP_COPY, MigrationFlag::StopCopy),
        (MigFlags::P2P, MigrationFlag::P2p),
        (MigFlags::PRE_COPY, MigrationFlag::PreCopy),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .map(|(_, name)| name)
    .collect()
}

fn migration_state(state: MigState) -> MigrationState {
    match state {
        MigState::Error => MigrationState::Error,
        MigState::Stop => MigrationState::Stop,
        MigState::Running => MigrationState::Running,
        MigState::StopCopy => MigrationState::StopCopy,
        MigState::Resuming => MigrationState::Resuming,
        MigState::RunningP2p => MigrationState::RunningP2p,
        MigState::PreCopy => MigrationState::PreCopy,
        MigState::PreCopyP2p => MigrationState::PreCopyP2p,
    }
}

#[cfg(test)]
mod tests {
    use dormouse_api::response::DeviceCondition;
    use dormouse_devices::lifecycle::{Quiesced, Save};
    use dormouse_devices::vfio::host::Alarms;
    use dormouse_devices::vfio::testing::{HostFaults, Model, Rig, RigParts};

    use super::conditions;

    #[test]
    fn what_is_out_of_the_ordinary_is_shown() {
        let rig = Rig::new(Model::nvme());
        assert_eq!(conditions(&rig.function), []);
        let shown = |wanted_back, failed| {
            rig.host.set_faults(HostFaults {
                alarms: Alarms {
                    wanted_back,
                    failed,
                },
                ..HostFaults::default()
            });
            conditions(&rig.function)
        };
        assert_eq!(shown(true, false), [DeviceCondition::WantedBack]);
        assert_eq!(shown(false, true), [DeviceCondition::Failed]);

        let mut parts = RigParts::new(Model::nvme());
        parts.state = Some(rig.function.save(&Quiesced::declare()));
        let woken = parts.build().unwrap();
        assert_eq!(conditions(&woken.function), [DeviceCondition::StateLost]);
    }
}
