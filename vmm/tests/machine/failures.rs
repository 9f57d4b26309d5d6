//! What fails halfway leaves a machine that runs and devices that can be used (invariants 1, 9 and 10).

use dormouse_vfio_migration::MigState;
use dormouse_vfio_migration::testing::{Contents, Fault};
use dormouse_vmm::machine::{PauseError, RestoreError, SaveError};

use super::rig::{Rig, chain, is_snapshot, paused, resumed};

const BOTH: [&str; 2] = ["vfio0", "vfio1"];
const EIO: i32 = 5;

#[test]
fn a_failed_pause_leaves_a_machine_that_runs() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let machine = rig.run(rig.config());
    rig.device("vfio1").migration.inject(Fault::Set {
        to: MigState::Stop,
        hops: 0,
        errno: EIO,
    });
    let Err(refused) = machine.pause() else {
        panic!("the fault did not strike")
    };
    let (machine, error) = *refused;
    assert!(matches!(error, PauseError::StopDevices(_)), "{error:?}");
    let lines = rig.recording.take();
    lines.assert_order(&[
        "is parked",
        "RUNNING -> RUNNING_P2P",
        "-> STOP failed",
        "runs",
    ]);
    lines.assert_order(&["RUNNING_P2P -> RUNNING", "runs"]);
    lines.assert_count("runs", 2);
    for id in BOTH {
        let state = rig.device(id).migration.current_state();
        assert_eq!(state, MigState::Running, "{id}");
    }
    paused(machine);
}

#[test]
fn a_failed_resume_leaves_a_machine_that_can_be_resumed() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let asleep = paused(rig.run(rig.config()));
    rig.device("vfio1").migration.inject(Fault::Set {
        to: MigState::Running,
        hops: 0,
        errno: EIO,
    });
    rig.recording.take();
    let Err(refused) = asleep.resume() else {
        panic!("the fault did not strike")
    };
    let lines = rig.recording.take();
    lines.assert_never(&["runs", "the guest's clock is set"]);
    for id in BOTH {
        let state = rig.device(id).migration.current_state();
        assert_eq!(state, MigState::Stop, "{id}");
    }
    resumed(refused.0);
    rig.recording.take().assert_count("runs", 2);
}

#[test]
fn a_failed_snapshot_leaves_no_directory_and_a_machine_that_resumes() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    let config = rig.config();
    let asleep = paused(rig.run(config.clone()));
    let read = Fault::Read { at: 50, errno: EIO };
    rig.device("vfio1").migration.inject(read);
    let error = rig.snapshot(&asleep, config.clone()).unwrap_err();
    assert!(matches!(error, SaveError::Stream { .. }), "{error:?}");
    assert!(chain(&error).contains("vfio1"), "{}", chain(&error));
    let lines = rig.recording.take();
    lines.assert_never(&["snapshot: Rename", "phase write memory"]);
    assert!(!rig.directory().exists());
    // The next attempt succeeds, and so does the machine's life after it.
    rig.snapshot(&asleep, config).unwrap();
    assert!(is_snapshot(&rig.directory()));
    resumed(asleep);
}

#[test]
fn a_failed_restore_leaves_all_devices_to_the_next_attempt() {
    let Some(rig) = Rig::new(&BOTH) else { return };
    rig.sleep();
    let other = rig.device("vfio1").migration;
    let own = other.contents();
    other.set_contents(Contents::Bytes(b"MODEL_B!and so on".to_vec()));
    let Err(error) = rig.restore() else {
        panic!("a state of another model was loaded")
    };
    assert!(matches!(error, RestoreError::Load { .. }), "{error:?}");
    assert!(chain(&error).contains("vfio1"), "{}", chain(&error));
    let lines = rig.recording.take();
    lines.assert_never(&["runs", "-> RUNNING_P2P"]);
    for id in BOTH {
        let migration = rig.device(id).migration;
        assert_eq!(migration.current_state(), MigState::Running, "{id}");
        assert_eq!(migration.open_fds(), 0, "{id}");
        assert!(rig.device(id).host.mapped().is_empty(), "{id}");
    }
    other.set_contents(own);
    resumed(rig.restore().unwrap());
}

#[test]
fn a_short_write_while_restoring_resets_the_device() {
    let Some(rig) = Rig::new(&["vfio0"]) else {
        return;
    };
    rig.sleep();
    let device = rig.device("vfio0");
    device.migration.inject(Fault::ShortWrite { at: 50 });
    let Err(error) = rig.restore() else {
        panic!("a short write was taken for a whole one")
    };
    assert!(matches!(error, RestoreError::Load { .. }), "{error:?}");
    let lines = rig.recording.take();
    lines.assert_order(&[
        "vfio0: RUNNING -> RESUMING",
        "vfio0: write 50",
        "vfio0: reset",
    ]);
    lines.assert_never(&["host: command", "host: arm"]);
    resumed(rig.restore().unwrap());
}

#[test]
fn a_device_in_another_state_is_reset_when_it_is_opened() {
    let Some(rig) = Rig::new(&["vfio0"]) else {
        return;
    };
    rig.sleep();
    rig.device("vfio0").migration.force_state(MigState::Error);
    let paused = rig.restore().unwrap();
    let lines = rig.recording.take();
    lines.assert_order(&["vfio0: reset", "vfio0: RUNNING -> RESUMING"]);
    resumed(paused);
}
