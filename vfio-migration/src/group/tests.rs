//! The order of requests over several devices, and roll-back from a failure at every place.

use std::sync::Arc;

use super::{GroupError, GroupFailure, PeerDma, Phase, pause, resume};
use crate::error::{Error, LostCause, Outcome};
use crate::migratable::MigratableDevice;
use crate::state::{MigFlags, MigState};
use crate::stream::StreamControl;
use crate::testing::{Event, FOREVER, Fault, ScriptedDevice, Step, Trace};

const P2P: MigFlags = MigFlags::STOP_COPY.union(MigFlags::P2P);
const RUNNING: Outcome = Outcome::Recovered {
    state: MigState::Running,
};
const STOPPED: Outcome = Outcome::Recovered {
    state: MigState::Stop,
};

struct Vm {
    fakes: Vec<Arc<ScriptedDevice>>,
    devices: Vec<MigratableDevice>,
    trace: Trace,
}

impl Vm {
    fn new(flags: &[MigFlags]) -> Self {
        let trace = Trace::new();
        let mut fakes = Vec::new();
        let mut devices = Vec::new();
        for (index, flags) in flags.iter().enumerate() {
            let id = format!("vfio{index}");
            let fake = ScriptedDevice::new(&id, *flags, &trace);
            let io: Arc<ScriptedDevice> = Arc::clone(&fake);
            devices.push(MigratableDevice::open(&id, io).unwrap().unwrap());
            fakes.push(fake);
        }
        trace.clear();
        Self {
            fakes,
            devices,
            trace,
        }
    }

    fn paused(flags: &[MigFlags]) -> Self {
        let mut vm = Self::new(flags);
        vm.pause().unwrap();
        vm.trace.clear();
        vm
    }

    fn refs(&mut self) -> Vec<&mut MigratableDevice> {
        self.devices.iter_mut().collect()
    }

    fn pause(&mut self) -> Result<(), GroupError> {
        pause(&mut self.refs(), PeerDma::Possible)
    }

    fn resume(&mut self) -> Result<(), GroupError> {
        resume(&mut self.refs(), PeerDma::Possible)
    }

    fn states(&self) -> Vec<MigState> {
        self.fakes.iter().map(|fake| fake.current_state()).collect()
    }

    /// Asserts that the last request for RUNNING_P2P came before the first for `last`.
    fn check_phases(&self, last: MigState) {
        let reaches = |event: &Event, state: MigState| matches!(event.what, Step::Set { to, .. } if to == state);
        let quiet = |event: &Event| reaches(event, MigState::RunningP2p);
        let last_quiet = self.trace.last(quiet).unwrap();
        let first_settled = self.trace.first(|event| reaches(event, last)).unwrap();
        assert!(last_quiet < first_settled, "{:?}", self.trace.changes());
    }
}

fn failed(result: Result<(), GroupError>) -> GroupFailure {
    match result.unwrap_err() {
        GroupError::Device(failure) => *failure,
        other => panic!("{other}"),
    }
}

#[test]
fn every_device_is_quiet_before_any_stops() {
    let mut vm = Vm::new(&[P2P; 3]);
    vm.pause().unwrap();
    assert_eq!(vm.states(), [MigState::Stop; 3]);
    vm.check_phases(MigState::Stop);
    assert_eq!(
        vm.trace.changes(),
        [
            "vfio0: RUNNING -> RUNNING_P2P",
            "vfio1: RUNNING -> RUNNING_P2P",
            "vfio2: RUNNING -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> STOP",
            "vfio1: RUNNING_P2P -> STOP",
            "vfio2: RUNNING_P2P -> STOP",
        ]
    );
}

#[test]
fn every_device_answers_before_any_runs() {
    let mut vm = Vm::paused(&[P2P; 2]);
    vm.resume().unwrap();
    assert_eq!(vm.states(), [MigState::Running; 2]);
    vm.check_phases(MigState::Running);
    assert_eq!(
        vm.trace.changes(),
        [
            "vfio0: STOP -> RUNNING_P2P",
            "vfio1: STOP -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> RUNNING",
            "vfio1: RUNNING_P2P -> RUNNING",
        ]
    );
}

#[test]
fn restored_devices_leave_resuming_in_phases() {
    let mut vm = Vm::new(&[P2P; 2]);
    for device in &mut vm.devices {
        let blob: Vec<u8> = b"MODEL_A!".iter().copied().chain(0..92).collect();
        let mut control = StreamControl::default();
        let resuming = device.begin_resuming().unwrap();
        resuming
            .load(&mut &blob[..], 100, &mut control)
            .unwrap()
            .keep();
    }
    vm.trace.clear();
    vm.resume().unwrap();
    vm.check_phases(MigState::Running);
    assert_eq!(vm.trace.changes()[0], "vfio0: RESUMING -> RUNNING_P2P");
    assert_eq!(vm.states(), [MigState::Running; 2]);
}

#[test]
fn a_device_without_p2p_is_refused_beside_others_before_anything_moves() {
    let mut vm = Vm::new(&[P2P, MigFlags::STOP_COPY]);
    let error = vm.pause().unwrap_err();
    assert!(
        matches!(error, GroupError::NoPeerToPeer { ref device, others: 1 } if **device == *"vfio1")
    );
    assert!(error.to_string().contains("vfio1"), "{error}");
    assert!(vm.trace.events().is_empty());

    pause(&mut vm.refs(), PeerDma::Impossible).unwrap();
    assert_eq!(
        vm.trace.changes(),
        [
            "vfio0: RUNNING -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> STOP",
            "vfio1: RUNNING -> STOP",
        ]
    );
    resume(&mut vm.refs(), PeerDma::Impossible).unwrap();
    assert_eq!(vm.states(), [MigState::Running; 2]);
}

#[test]
fn a_single_device_needs_no_p2p() {
    let mut vm = Vm::new(&[MigFlags::STOP_COPY]);
    vm.pause().unwrap();
    vm.resume().unwrap();
    assert_eq!(
        vm.trace.changes(),
        ["vfio0: RUNNING -> STOP", "vfio0: STOP -> RUNNING"]
    );
    pause(&mut [], PeerDma::Possible).unwrap();
}

#[test]
fn a_failed_pause_leaves_every_device_running() {
    for (target, phase) in [
        (MigState::RunningP2p, Phase::Quiesce),
        (MigState::Stop, Phase::Settle),
    ] {
        for failing in 0..3 {
            for hops in 0..=1 {
                let mut vm = Vm::new(&[P2P; 3]);
                vm.fakes[failing].inject(Fault::Set {
                    to: target,
                    hops,
                    errno: libc::EIO,
                });
                let failure = failed(vm.pause());
                assert_eq!(failure.phase, phase);
                assert_eq!(*failure.failure.device, *format!("vfio{failing}"));
                assert_eq!(failure.failure.outcome, RUNNING);
                assert!(
                    failure
                        .others
                        .iter()
                        .all(|(_, outcome)| *outcome == RUNNING)
                );
                let moved = if phase == Phase::Quiesce { failing } else { 2 };
                assert_eq!(failure.others.len(), moved);
                assert_eq!(vm.states(), [MigState::Running; 3]);
                let resets = vm.trace.first(|event| event.what == Step::Reset);
                assert_eq!(resets, None);
                vm.pause().unwrap();
                assert_eq!(vm.states(), [MigState::Stop; 3]);
            }
        }
    }
}

#[test]
fn roll_back_goes_in_phases_too() {
    let mut vm = Vm::new(&[P2P; 3]);
    vm.fakes[2].inject(Fault::Set {
        to: MigState::Stop,
        hops: 0,
        errno: libc::EIO,
    });
    failed(vm.pause());
    let changes = vm.trace.changes();
    let after = changes
        .iter()
        .position(|line| line.contains("failed"))
        .unwrap()
        + 1;
    assert_eq!(
        changes[after..],
        [
            "vfio0: STOP -> RUNNING_P2P",
            "vfio1: STOP -> RUNNING_P2P",
            "vfio0: RUNNING_P2P -> RUNNING",
            "vfio1: RUNNING_P2P -> RUNNING",
            "vfio2: RUNNING_P2P -> RUNNING",
        ]
    );
}

#[test]
fn a_failed_resume_leaves_the_vm_paused() {
    for (target, phase) in [
        (MigState::RunningP2p, Phase::Quiesce),
        (MigState::Running, Phase::Settle),
    ] {
        for failing in 0..3 {
            for hops in 0..=1 {
                let mut vm = Vm::paused(&[P2P; 3]);
                vm.fakes[failing].inject(Fault::Set {
                    to: target,
                    hops,
                    errno: libc::EIO,
                });
                let failure = failed(vm.resume());
                assert_eq!((failure.phase, failure.failure.outcome), (phase, STOPPED));
                assert!(
                    failure
                        .others
                        .iter()
                        .all(|(_, outcome)| *outcome == STOPPED)
                );
                assert_eq!(vm.states(), [MigState::Stop; 3]);
                vm.resume().unwrap();
                assert_eq!(vm.states(), [MigState::Running; 3]);
            }
        }
    }
}

#[test]
fn a_device_that_breaks_is_reset_and_the_others_roll_back() {
    let mut vm = Vm::new(&[P2P; 2]);
    vm.fakes[1].inject(Fault::SetBreaks {
        to: MigState::Stop,
        errno: libc::EIO,
    });
    let failure = failed(vm.pause());
    assert_eq!(failure.failure.outcome, Outcome::WasReset);
    assert_eq!(failure.others[0].1, RUNNING);
    assert_eq!(vm.states(), [MigState::Running; 2]);

    let mut vm = Vm::paused(&[P2P; 2]);
    vm.fakes[1].inject(Fault::SetBreaks {
        to: MigState::Running,
        errno: libc::EIO,
    });
    let failure = failed(vm.resume());
    assert_eq!(failure.failure.outcome, Outcome::WasReset);
    assert_eq!(vm.states(), [MigState::Stop, MigState::Running]);
    vm.resume().unwrap();
    assert_eq!(vm.states(), [MigState::Running; 2]);
}

#[test]
fn a_roll_back_that_fails_is_reported_per_device() {
    let mut vm = Vm::new(&[P2P; 3]);
    vm.fakes[2].inject(Fault::Set {
        to: MigState::Stop,
        hops: 0,
        errno: libc::EBUSY,
    });
    vm.fakes[0].inject(Fault::SetBreaks {
        to: MigState::Running,
        errno: libc::EIO,
    });
    vm.fakes[1].inject(Fault::SetBreaks {
        to: MigState::Running,
        errno: libc::EIO,
    });
    vm.fakes[1].inject_times(
        Fault::Reset {
            errno: libc::EINVAL,
        },
        FOREVER,
    );
    let failure = failed(vm.pause());
    let lost = Outcome::Lost(LostCause::ResetFailed {
        errno: libc::EINVAL,
    });
    let others: Vec<Outcome> = failure.others.iter().map(|(_, outcome)| *outcome).collect();
    assert_eq!(others, [Outcome::WasReset, lost]);
    assert_eq!(failure.failure.outcome, RUNNING);
    let message = failure.to_string();
    for part in [
        "vfio2",
        "RUNNING_P2P to STOP",
        "device vfio0: it was reset",
        "device vfio1",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_loaded_device_that_fails_to_leave_resuming_is_reset_and_not_stopped() {
    let mut vm = Vm::new(&[P2P]);
    let mut control = StreamControl::default();
    let blob: Vec<u8> = b"MODEL_A!".iter().copied().chain(0..92).collect();
    let resuming = vm.devices[0].begin_resuming().unwrap();
    resuming
        .load(&mut &blob[..], 100, &mut control)
        .unwrap()
        .keep();
    vm.fakes[0].inject(Fault::Set {
        to: MigState::RunningP2p,
        hops: 0,
        errno: libc::EIO,
    });
    let failure = failed(vm.resume());
    assert_eq!(failure.failure.outcome, Outcome::WasReset);
    let stopped = |event: &Event| {
        matches!(
            event.what,
            Step::Set {
                to: MigState::Stop,
                ..
            }
        )
    };
    assert_eq!(vm.trace.first(stopped), None);
}

#[test]
fn a_state_that_is_refused_late_is_reset_by_the_group() {
    let mut vm = Vm::new(&[P2P]);
    let mut control = StreamControl::default();
    let blob: Vec<u8> = b"MODEL_A!".iter().copied().chain(0..91).collect();
    let resuming = vm.devices[0].begin_resuming().unwrap();
    resuming
        .load(&mut &blob[..], 99, &mut control)
        .unwrap()
        .keep();
    let failure = failed(vm.resume());
    assert_eq!(failure.failure.outcome, Outcome::WasReset);
    assert_eq!(vm.states(), [MigState::Running]);
}

#[test]
fn a_reset_from_outside_stops_a_resume_before_anything_moves() {
    let mut vm = Vm::paused(&[P2P; 2]);
    vm.fakes[1].force_state(MigState::Running);
    let failure = failed(vm.resume());
    assert_eq!(failure.phase, Phase::Check);
    assert!(matches!(
        failure.failure.error,
        Error::ResetFromOutside { .. }
    ));
    assert_eq!(failure.failure.outcome, Outcome::WasReset);
    assert!(vm.trace.changes().is_empty());
    vm.resume().unwrap();
    assert_eq!(vm.states(), [MigState::Running; 2]);
}

#[test]
fn an_unexpected_state_is_refused_before_anything_moves() {
    for state in [MigState::Error, MigState::StopCopy, MigState::Resuming] {
        let mut vm = Vm::new(&[P2P; 2]);
        vm.fakes[1].force_state(state);
        let failure = failed(vm.pause());
        assert_eq!(failure.phase, Phase::Check);
        assert_eq!(failure.failure.outcome, Outcome::Untouched);
        assert!(vm.trace.changes().is_empty());
    }
}

#[test]
fn a_resume_resets_devices_that_could_never_start() {
    for state in [MigState::Error, MigState::StopCopy, MigState::PreCopy] {
        let mut vm = Vm::paused(&[P2P; 3]);
        vm.fakes[0].force_state(state);
        vm.fakes[2].force_state(state);
        let failure = failed(vm.resume());
        assert_eq!(failure.phase, Phase::Check);
        assert_eq!(failure.failure.outcome, Outcome::WasReset);
        assert_eq!(
            failure.others,
            [(Arc::from("vfio2"), Outcome::WasReset)],
            "all are reset in one attempt"
        );
        let expected = [MigState::Running, MigState::Stop, MigState::Running];
        assert_eq!(vm.states(), expected);
        vm.resume().unwrap();
        assert_eq!(vm.states(), [MigState::Running; 3]);
    }
}

#[test]
fn a_resume_resets_a_device_that_does_not_tell_its_state() {
    let mut vm = Vm::paused(&[P2P]);
    vm.fakes[0].inject(Fault::Get { errno: libc::EIO });
    let failure = failed(vm.resume());
    assert!(matches!(failure.failure.error, Error::QueryState { .. }));
    assert_eq!(failure.failure.outcome, Outcome::WasReset);
    vm.resume().unwrap();
    assert_eq!(vm.states(), [MigState::Running]);
}

#[test]
fn a_resume_says_that_a_device_is_lost_when_its_reset_fails() {
    let mut vm = Vm::paused(&[P2P]);
    vm.fakes[0].force_state(MigState::Error);
    let errno = libc::EINVAL;
    vm.fakes[0].inject(Fault::Reset { errno });
    let failure = failed(vm.resume());
    let lost = Outcome::Lost(LostCause::ResetFailed { errno });
    assert_eq!(failure.failure.outcome, lost);
    assert!(failure.to_string().contains("remove it from the VM"));
    assert_eq!(failed(vm.resume()).failure.outcome, Outcome::WasReset);
    vm.resume().unwrap();
}
