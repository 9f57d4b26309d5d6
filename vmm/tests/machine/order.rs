//! The order of pause, snapshot, restore and resume (invariants 1, 3, 4, 5, 6 and 10).

use dormouse_pci::PciFunction;
use dormouse_vfio_migration::testing::Contents;

use dormouse_vmm::machine::{Attached, Machine};

use super::rig::{Rig, is_snapshot, paused, resumed};

const BOTH: [&str; 2] = ["vfio0", "vfio1"];

#[test]
fn pause_parks_vcpus_and_then_stops_devices_in_phases() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let machine = rig.run(rig.config());
    let paused = paused(machine);
    let lines = rig.recording.take();
    lines.assert_order(&["is parked", "RUNNING -> RUNNING_P2P", "RUNNING_P2P -> STOP"]);
    lines.assert_count("is parked", 2);
    lines.assert_count("RUNNING -> RUNNING_P2P", 2);
    lines.assert_count("RUNNING_P2P -> STOP", 2);
    lines.assert_never(&["runs"]);
    drop(paused);
}

#[test]
fn resume_starts_devices_in_phases_and_then_vcpus() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let paused = paused(rig.run(rig.config()));
    rig.recording.take();
    let _machine = resumed(paused);
    let lines = rig.recording.take();
    lines.assert_order(&[
        "STOP -> RUNNING_P2P",
        "RUNNING_P2P -> RUNNING",
        "the guest's clock is set",
        "runs",
    ]);
    lines.assert_count("STOP -> RUNNING_P2P", 2);
    lines.assert_count("RUNNING_P2P -> RUNNING", 2);
    lines.assert_count("runs", 2);
}

#[test]
fn kvm_state_is_read_after_the_last_device_stopped() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let config = rig.config();
    let paused = paused(rig.run(config.clone()));
    rig.snapshot(&paused, config).unwrap();
    let lines = rig.recording.take();
    for kvm_state in ["the state of vCPU", "the interrupt controllers are read"] {
        lines.assert_order(&["-> STOP", kvm_state]);
    }
    lines.assert_count("the state of vCPU", 2);
    // Nothing moves between what is read from KVM and what is read from RAM.
    lines.assert_never(&["runs", "RUNNING_P2P -> RUNNING"]);
}

#[test]
fn a_snapshot_is_streams_state_memory_sync_and_one_rename() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let config = rig.config();
    let paused = paused(rig.run(config.clone()));
    rig.recording.take();
    rig.snapshot(&paused, config).unwrap();
    let lines = rig.recording.take();
    for id in BOTH {
        let reads = lines
            .of(id)
            .into_iter()
            .filter(|line| line.starts_with("read"));
        assert!(reads.count() > 0, "{lines}");
        lines.assert_order(&[
            &format!("{id}: STOP -> STOP_COPY"),
            &format!("{id}: read"),
            &format!("{id}: STOP_COPY -> STOP"),
            "the state of vCPU",
        ]);
    }
    lines.assert_order(&[
        "STOP_COPY -> STOP",
        "phase save state",
        "phase write memory",
        "phase sync",
        "snapshot: Rename manifest.json",
    ]);
    for file in [
        "vfio-vfio0.bin",
        "vfio-vfio1.bin",
        "state.json",
        "memory.bin",
    ] {
        lines.assert_order(&[
            &format!("snapshot: Create {file}"),
            &format!("snapshot: Sync {file}"),
            "snapshot: Rename manifest.json",
        ]);
    }
    let steps = lines.of("vmm");
    let rename = steps
        .iter()
        .position(|step| step.starts_with("snapshot: Rename"))
        .unwrap();
    assert_eq!(
        steps[rename - 2..rename],
        ["snapshot: Sync .", "snapshot: Sync .."],
        "every name is durable before the rename\n{lines}"
    );
    assert_eq!(steps[rename + 1..], ["snapshot: Sync ."], "{lines}");
    assert!(is_snapshot(&rig.directory()));
}

#[test]
fn a_machine_runs_on_after_its_snapshot() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let config = rig.config();
    let asleep = paused(rig.run(config.clone()));
    rig.snapshot(&asleep, config).unwrap();
    rig.recording.take();
    let machine = resumed(asleep);
    rig.recording
        .take()
        .assert_order(&["STOP -> RUNNING_P2P", "RUNNING_P2P -> RUNNING", "runs"]);
    paused(machine);
}

#[test]
fn restore_verifies_first_and_opens_devices_last() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let _paused = rig.restore().unwrap();
    let lines = rig.recording.take();
    assert_eq!(lines.of("vmm")[0], "phase open snapshot", "{lines}");
    lines.assert_order(&[
        "phase open snapshot",
        "phase verify",
        "phase load memory",
        "source: open",
    ]);
    for before in [
        "the state of vCPU",
        "the interrupt controllers are set",
        "vmm: reserved 64-bit memory",
    ] {
        lines.assert_order(&["phase load memory", before, "source: open", "host: reset"]);
    }
    // Two BARs each, and the same again for where they go after a reset of the machine, which is refused as taken.
    lines.assert_count("vmm: reserved 64-bit memory", 4);
    lines.assert_never(&["runs", "RUNNING_P2P"]);
}

#[test]
fn a_restored_device_is_set_up_in_resuming_and_waits_there() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let paused = rig.restore().unwrap();
    let lines = rig.recording.take();
    for id in BOTH {
        let host = format!("{id} host");
        lines.assert_order(&[
            &format!("{host}: reset"),
            &format!("{id}: RUNNING -> RESUMING"),
            &format!("{id}: write"),
            &format!("{id}: close"),
            &format!("{host}: command 0x0406"),
            &format!("{host}: arm Msi 0 x"),
            &format!("{host}: map"),
        ]);
        let sets = lines.of(id).into_iter().filter(|line| line.contains("->"));
        assert_eq!(sets.collect::<Vec<_>>(), ["RUNNING -> RESUMING"]);
    }
    let _machine = resumed(paused);
    let lines = rig.recording.take();
    lines.assert_order(&[
        "RESUMING -> RUNNING_P2P",
        "RUNNING_P2P -> RUNNING",
        "the guest's clock is set",
        "runs",
    ]);
    lines.assert_count("RESUMING -> RUNNING_P2P", 2);
}

#[test]
fn bars_are_where_they_were_whatever_the_order_of_the_devices() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let places = |machine: &Machine| {
        let functions = machine.functions().iter();
        functions
            .map(|attached| (attached.id.clone(), attached.function.desired_bars()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let config = rig.config();
    let asleep = paused(rig.run(config.clone()));
    rig.snapshot(&asleep, config.clone()).unwrap();
    let before = places(asleep.machine());
    drop(asleep);
    rig.renew();
    let mut turned = config;
    turned["devices"].as_array_mut().unwrap().reverse();
    let awake = rig.restore_with(turned).unwrap();
    assert_eq!(places(awake.machine()), before);
}

#[test]
fn a_device_with_an_empty_state_sleeps_and_wakes() {
    let Some(rig) = Rig::new(&["vfio0"]) else {
        return;
    };
    let migration = rig.device("vfio0").migration;
    migration.set_contents(Contents::Bytes(Vec::new()));
    let config = rig.config();
    let asleep = paused(rig.run(config.clone()));
    rig.snapshot(&asleep, config).unwrap();
    drop(asleep);
    resumed(rig.restore().unwrap());
}

#[test]
fn the_old_place_of_a_bar_may_be_another_ones() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let config = rig.config();
    let machine = rig.run(config.clone());
    let [one, two] = machine.functions() else {
        panic!("two functions")
    };
    let write = |attached: &Attached, offset, value: u32| {
        for effect in attached.function.config_write(offset, &value.to_le_bytes()) {
            attached.function.apply_effect(effect);
        }
    };
    let old = one.function.placed_bars()[0].1;
    // The first is being sized, its upper half first so that it answers nowhere, and the second goes where it was.
    write(one, 0x14, u32::MAX);
    write(one, 0x10, u32::MAX);
    write(two, 0x10, old as u32);
    write(two, 0x14, (old >> 32) as u32);
    let places = |machine: &Machine| {
        let functions = machine.functions().iter();
        functions
            .map(|attached| attached.function.placed_bars())
            .collect::<Vec<_>>()
    };
    let before = places(&machine);
    assert_eq!(before[1][0].1, old);
    assert_eq!(before[0].len() + 1, before[1].len(), "one does not answer");
    let asleep = paused(machine);
    rig.snapshot(&asleep, config).unwrap();
    drop(asleep);
    rig.renew();
    let awake = resumed(rig.restore().unwrap());
    assert_eq!(places(&awake), before);
}

#[test]
fn a_restore_tells_its_phases_to_the_end() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let Ok((machine, timeline)) = rig.restore().unwrap().resume() else {
        panic!("the restored machine does not wake")
    };
    let timeline = timeline.expect("it has not run since it was restored");
    let begun = |name: &str, device: Option<&str>| {
        let mut phases = timeline.phases.iter();
        let phase = phases.find(|phase| phase.name == name && phase.device.as_deref() == device);
        phase
            .unwrap_or_else(|| panic!("no {name} of {device:?} in {timeline:?}"))
            .start_us
    };
    let of_all = [
        "open snapshot",
        "verify",
        "load memory",
        "open devices",
        "resume",
    ];
    let starts = of_all.map(|name| begun(name, None));
    assert!(starts.is_sorted(), "{timeline:?}");
    for id in BOTH {
        let of_device = ["load device", "fix up", "to RUNNING"].map(|name| begun(name, Some(id)));
        assert!(of_device.is_sorted(), "{timeline:?}");
    }
    // Later nights are no part of that story.
    let (_machine, again) = paused(machine).resume().unwrap_or_else(|_| panic!("no"));
    assert!(again.is_none());
}
