//! What cannot work is refused before anything changes, and support is asked of the kernel each time (invariants 8 and 11).

use std::fs;

use dormouse_devices::vfio::testing::{HostFaults, Model};
use dormouse_vfio_migration::{MigFlags, MigState};
use dormouse_vmm::machine::{PauseError, RestoreError, SaveError};
use dormouse_vmm::vfio::Identity;
use serde_json::json;

use super::rig::{Device, Rig, chain, is_snapshot, paused, resumed};

const BOTH: [&str; 2] = ["vfio0", "vfio1"];
/// Any state change of a device.
const SET: &str = " -> ";

#[test]
fn devices_that_could_reach_each_other_are_refused_before_vcpus_stop() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    for id in BOTH {
        let migration = rig.device(id).migration;
        migration.set_flags(Some(MigFlags::STOP_COPY));
    }
    let machine = rig.run(rig.config());
    let known = machine.pause_blocked_by().unwrap().to_string();
    assert!(known.contains("no RUNNING_P2P"), "{known}");
    let Err(refused) = machine.pause() else {
        panic!("devices without P2P states were paused together")
    };
    assert!(matches!(refused.1, PauseError::StopDevices(_)));
    rig.recording.take().assert_never(&["is parked", SET]);
}

#[test]
fn devices_that_cannot_reach_each_other_need_no_p2p_states() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    for id in BOTH {
        let device = rig.device(id);
        device.migration.set_flags(Some(MigFlags::STOP_COPY));
        device.host.set_faults(HostFaults {
            no_peers: true,
            ..HostFaults::default()
        });
    }
    let machine = rig.run(rig.config());
    assert!(machine.pause_blocked_by().is_none());
    resumed(paused(machine));
}

#[test]
fn a_device_without_migration_blocks_the_snapshot_untouched() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.device("vfio1").migration.set_flags(None);
    let config = rig.config();
    let asleep = paused(rig.run(config.clone()));
    rig.recording.take();
    // What an interrupted snapshot left there is removed by the next one, but not by one that is refused.
    let leftover = rig.directory().join("memory.bin");
    fs::create_dir(rig.directory()).unwrap();
    fs::write(&leftover, "half").unwrap();
    let error = rig.snapshot(&asleep, config).unwrap_err();
    assert!(matches!(error, SaveError::Blocked(_)), "{error:?}");
    let text = chain(&error);
    assert!(text.contains("vfio1") && text.contains("no VFIO migration support"));
    let lines = rig.recording.take();
    assert_eq!(lines.to_string(), "", "something happened");
    assert_eq!(fs::read(&leftover).unwrap(), b"half");
    let _machine = resumed(asleep);
    rig.recording.take().assert_count("runs", 2);
}

#[test]
fn a_discarded_device_cannot_write_ram_while_it_is_saved() {
    let Some(rig) = Rig::new(&["vfio0"]) else {
        return;
    };
    rig.device("vfio0").migration.set_flags(None);
    let mut config = rig.config();
    config["devices"][0]["snapshot"] = json!("discard-state");
    let asleep = paused(rig.run(config.clone()));
    rig.recording.take();
    rig.snapshot(&asleep, config).unwrap();
    let lines = rig.recording.take();
    lines.assert_order(&[
        "vfio0 host: command 0x0402",
        "the state of vCPU",
        "phase write memory",
        "vfio0 host: command 0x0406",
    ]);
    assert!(is_snapshot(&rig.directory()));
}

#[test]
fn a_device_that_cannot_be_reset_is_neither_discarded_nor_woken_without_its_state() {
    let Some(rig) = Rig::new(&["vfio0"]) else {
        return;
    };
    let device = rig.device("vfio0");
    device.migration.set_flags(None);
    let mut config = rig.config();
    config["devices"][0]["snapshot"] = json!("discard-state");
    let asleep = paused(rig.run(config.clone()));
    rig.snapshot(&asleep, config.clone()).unwrap();
    drop(asleep);
    let faults = HostFaults {
        reset: Some(libc::EINVAL),
        ..HostFaults::default()
    };
    device.host.set_faults(faults);
    rig.recording.take();
    let Err(error) = rig.restore_with(config.clone()) else {
        panic!("it may have live queues")
    };
    let text = chain(&error);
    assert!(
        text.contains("vfio0") && text.contains("cannot reset"),
        "{text}"
    );
    let lines = rig.recording.take();
    lines.assert_never(&["host: command", "host: arm", "host: map"]);

    let asleep = paused(rig.run(config.clone()));
    rig.recording.take();
    let error = rig.snapshot(&asleep, config).unwrap_err();
    assert!(matches!(error, SaveError::Blocked(_)), "{error:?}");
    let text = chain(&error);
    assert!(
        text.contains("vfio0") && text.contains("cannot reset"),
        "{text}"
    );
    assert_eq!(rig.recording.take().to_string(), "", "something happened");
}

#[test]
fn a_mediated_device_without_migration_is_not_discarded() {
    let Some(rig) = Rig::new(&["vfio0"]) else {
        return;
    };
    let mut model = Model::igb_vf();
    model.mediated = true;
    let device = Device::of_model("vfio0", model, rig.recording.trace());
    device.migration.set_flags(None);
    rig.replace("vfio0", device);
    let mut config = rig.config();
    config["devices"][0]["snapshot"] = json!("discard-state");
    let machine = rig.run(config.clone());
    let block = machine.functions()[0].snapshot_block().unwrap();
    assert!(block.to_string().contains("mediated device vfio0"));
    let error = rig.snapshot(&paused(machine), config).unwrap_err();
    assert!(matches!(error, SaveError::Blocked(_)), "{error:?}");
}

#[test]
fn a_state_is_not_loaded_where_one_device_cannot() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    rig.device("vfio1").migration.set_flags(None);
    let Err(error) = rig.restore() else {
        panic!("a device without migration took a state")
    };
    assert!(
        matches!(&error, RestoreError::NotMigratable { id, .. } if id == "vfio1"),
        "{error:?}"
    );
    let lines = rig.recording.take();
    lines.assert_never(&[SET, "host: command", "host: arm", "host: map"]);
}

#[test]
fn a_device_of_another_model_is_refused_before_any_state_is_loaded() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let trace = rig.recording.trace();
    rig.replace("vfio1", Device::of_model("vfio1", Model::nvme(), trace));
    let Err(error) = rig.restore() else {
        panic!("another model was taken")
    };
    let text = chain(&error);
    assert!(
        text.contains("vfio1") && text.contains("same model"),
        "{text}"
    );
    let lines = rig.recording.take();
    lines.assert_never(&[SET, "host: command", "host: arm", "host: map"]);
}

#[test]
fn what_sysfs_tells_is_refused_before_a_device_is_opened() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let mut other = rig.device("vfio1");
    other.seen = Some(Identity {
        vendor: 0x15b3,
        device: 0x101e,
        class: 0x02_0000,
    });
    rig.replace("vfio1", other);
    let Err(error) = rig.restore() else {
        panic!("another model was taken")
    };
    let text = chain(&error);
    assert!(
        text.contains("vfio1") && text.contains("15b3:101e"),
        "{text}"
    );
    let lines = rig.recording.take();
    lines.assert_count("source: survey", 1);
    lines.assert_never(&[SET, "source: open", "host: "]);
}

#[test]
fn missing_and_extra_devices_are_refused_before_ram_is_loaded() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let mut fewer = rig.config();
    fewer["devices"].as_array_mut().unwrap().pop();
    let trace = rig.recording.trace();
    rig.replace("vfio2", Device::new("vfio2", trace));
    let more = rig.config();
    for (config, id) in [(fewer, "vfio1"), (more, "vfio2")] {
        let Err(error) = rig.restore_with(config) else {
            panic!("{id} is not where it should be")
        };
        assert!(
            matches!(&error, RestoreError::DeviceSet { id: named } if named == id),
            "{error:?}"
        );
        let lines = rig.recording.take();
        lines.assert_never(&["phase load memory", "is set", "source: open", SET]);
    }
}

#[test]
fn a_damaged_stream_is_refused_before_anything_is_touched() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let path = rig.directory().join("vfio-vfio1.bin");
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[60] ^= 1;
    for damaged in [&flipped[..], &whole[..99], &[&whole[..], b"x"].concat()] {
        fs::write(&path, damaged).unwrap();
        let refused = rig.restore();
        assert!(matches!(refused, Err(RestoreError::Snapshot(_))));
        let lines = rig.recording.take();
        lines.assert_never(&["phase load memory", "is set", "source: open", SET]);
    }
    fs::write(&path, whole).unwrap();
    resumed(rig.restore().unwrap());
}

#[test]
fn migration_support_is_asked_anew_and_is_in_no_snapshot() {
    let Some(rig) = Rig::new(&["vfio0"]) else {
        return;
    };
    rig.sleep();
    let text = fs::read_to_string(rig.directory().join("state.json")).unwrap();
    assert!(!text.contains("migration") && !text.contains("P2P"));
    // Saved on a device with P2P states, restored on one without, whose own flags count.
    let device = rig.device("vfio0").migration;
    device.set_flags(Some(MigFlags::STOP_COPY));
    let awake = resumed(rig.restore().unwrap());
    let lines = rig.recording.take();
    lines.assert_order(&["RUNNING -> RESUMING", "RESUMING -> RUNNING"]);
    lines.assert_never(&["RUNNING_P2P"]);
    let _asleep = paused(awake);
    rig.recording.take().assert_never(&["RUNNING_P2P"]);
    assert_eq!(device.current_state(), MigState::Stop);
}
