//! Opening a device, and recovery after a SET that failed at each hop.

use std::error::Error as _;
use std::sync::Arc;

use super::MigratableDevice;
use crate::error::{Error, LostCause, Outcome};
use crate::group::{PeerDma, pause};
use crate::state::{MigFlags, MigState};
use crate::testing::{FOREVER, Fault, ScriptedDevice, Trace};

const P2P: MigFlags = MigFlags::STOP_COPY.union(MigFlags::P2P);

fn opened(fake: &Arc<ScriptedDevice>) -> MigratableDevice {
    let io: Arc<ScriptedDevice> = Arc::clone(fake);
    MigratableDevice::open("vfio0", io).unwrap().unwrap()
}

fn device(flags: MigFlags) -> (Arc<ScriptedDevice>, Trace) {
    let trace = Trace::new();
    (ScriptedDevice::new("vfio0", flags, &trace), trace)
}

#[test]
fn a_device_without_migration_is_no_error_and_is_left_alone() {
    for flags in [None, Some(MigFlags::empty()), Some(MigFlags::P2P)] {
        let (fake, trace) = device(P2P);
        fake.set_flags(flags);
        fake.force_state(MigState::Stop);
        assert!(MigratableDevice::open("vfio0", fake).unwrap().is_none());
        assert!(trace.events().is_empty(), "{flags:?}");
    }
}

#[test]
fn open_resets_a_device_that_a_dead_owner_left_behind() {
    for state in MigState::ALL {
        let (fake, trace) = device(MigFlags::all());
        fake.force_state(state);
        let device = opened(&fake);
        let running = state == MigState::Running;
        assert_eq!(device.was_reset_at_open(), !running, "{state}");
        assert_eq!(fake.current_state(), MigState::Running);
        let expected: &[&str] = if running { &[] } else { &["vfio0: reset"] };
        assert_eq!(trace.changes(), expected, "{state}");
    }
}

#[test]
fn open_refuses_a_device_that_cannot_be_reset() {
    let cases = [
        (
            Fault::Reset {
                errno: libc::EINVAL,
            },
            LostCause::ResetFailed {
                errno: libc::EINVAL,
            },
        ),
        (
            Fault::Reset {
                errno: libc::EAGAIN,
            },
            LostCause::ResetFailed {
                errno: libc::EAGAIN,
            },
        ),
        (
            Fault::IdleReset,
            LostCause::StillIn {
                state: MigState::Error,
            },
        ),
    ];
    for (fault, cause) in cases {
        let (fake, _) = device(P2P);
        fake.force_state(MigState::Error);
        fake.inject_times(fault, FOREVER);
        let failure = MigratableDevice::open("vfio0", fake).unwrap_err();
        assert_eq!(failure.outcome, Outcome::Lost(cause));
        let message = failure.to_string();
        assert!(
            message.contains("vfio0") && message.contains("ERROR"),
            "{message}"
        );
    }
}

#[test]
fn a_reset_waits_for_a_busy_device() {
    let (fake, _) = device(P2P);
    fake.force_state(MigState::Error);
    fake.inject_times(
        Fault::Reset {
            errno: libc::EAGAIN,
        },
        3,
    );
    assert!(opened(&fake).was_reset_at_open());
}

#[test]
fn a_failed_set_is_followed_by_a_get_and_recovery_from_each_hop() {
    let states = [MigState::RunningP2p, MigState::Stop];
    for (index, target) in states.into_iter().enumerate() {
        for hops in 0..=1 {
            let (fake, trace) = device(P2P);
            let mut device = opened(&fake);
            trace.clear();
            fake.inject(Fault::Set {
                to: target,
                hops,
                errno: libc::EIO,
            });
            pause(&mut [&mut device], PeerDma::Possible).unwrap_err();
            assert_eq!(fake.current_state(), MigState::Running, "{target} {hops}");
            let lines: Vec<String> = trace.events().iter().map(ToString::to_string).collect();
            let failed = lines
                .iter()
                .position(|line| line.contains("failed"))
                .unwrap();
            assert!(
                lines[failed + 1].starts_with("vfio0: GET"),
                "{index}: {lines:?}"
            );
            assert!(
                !lines.iter().any(|line| line.contains("reset")),
                "{lines:?}"
            );
        }
    }
}

#[test]
fn a_device_in_error_is_reset_and_the_first_error_is_reported() {
    let (fake, _) = device(P2P);
    let mut device = opened(&fake);
    fake.inject(Fault::SetBreaks {
        to: MigState::Stop,
        errno: libc::EIO,
    });
    assert!(device.set(MigState::Stop).is_err());
    assert_eq!(device.recover(MigState::Running), Outcome::WasReset);
    let failure = device.failure(
        Error::Transition {
            from: MigState::Running,
            to: MigState::Stop,
            source: std::io::Error::from_raw_os_error(libc::EIO),
        },
        Outcome::WasReset,
    );
    let message = failure.to_string();
    for part in ["vfio0", "RUNNING", "STOP", "reset", "PCI command"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(failure.source().unwrap().to_string().contains("os error 5"));
}

#[test]
fn recovery_that_fails_as_well_ends_in_a_reset() {
    let (fake, trace) = device(P2P);
    let mut device = opened(&fake);
    device.set(MigState::Stop).unwrap();
    trace.clear();
    fake.inject(Fault::Set {
        to: MigState::Running,
        hops: 1,
        errno: libc::EIO,
    });
    assert_eq!(device.recover(MigState::Running), Outcome::WasReset);
    assert_eq!(
        trace.changes(),
        [
            "vfio0: STOP -> RUNNING failed with 5 in RUNNING_P2P",
            "vfio0: reset"
        ]
    );
}

#[test]
fn a_device_that_does_not_answer_is_reset() {
    let (fake, _) = device(P2P);
    let mut device = opened(&fake);
    fake.inject(Fault::Get { errno: libc::EIO });
    assert_eq!(device.recover(MigState::Running), Outcome::WasReset);
    fake.inject_times(
        Fault::Get {
            errno: libc::ENOTCONN,
        },
        FOREVER,
    );
    let cause = LostCause::Silent {
        errno: libc::ENOTCONN,
    };
    assert_eq!(device.recover(MigState::Running), Outcome::Lost(cause));
}

#[test]
fn an_interrupted_set_without_effect_is_repeated_a_bounded_number_of_times() {
    let (fake, trace) = device(P2P);
    let mut device = opened(&fake);
    let interrupted = Fault::Set {
        to: MigState::Stop,
        hops: 0,
        errno: libc::EINTR,
    };
    fake.inject_times(interrupted, 3);
    device.set(MigState::Stop).unwrap();
    device.set(MigState::Running).unwrap();
    trace.clear();
    fake.inject_times(interrupted, FOREVER);
    assert!(device.set(MigState::Stop).is_err());
    assert_eq!(trace.changes().len(), 9);
}

#[test]
fn an_interrupted_set_that_moved_the_device_is_not_repeated() {
    let (fake, trace) = device(P2P);
    let mut device = opened(&fake);
    trace.clear();
    fake.inject(Fault::Set {
        to: MigState::Stop,
        hops: 1,
        errno: libc::EINTR,
    });
    assert!(device.set(MigState::Stop).is_err());
    assert_eq!(trace.changes().len(), 1);
}

#[test]
fn signals_are_held_off_during_every_set() {
    let (fake, _) = device(P2P);
    let mut device = opened(&fake);
    for state in [MigState::Stop, MigState::RunningP2p, MigState::Running] {
        device.set(state).unwrap();
    }
    assert_eq!(fake.unguarded_calls(), 0);
}

#[test]
fn an_estimate_has_a_floor_and_absurd_ones_are_ignored() {
    let (fake, _) = device(P2P);
    let device = opened(&fake);
    let answers = [
        (Ok(0), Some(4096)),
        (Ok(5000), Some(5000)),
        (Ok(u64::MAX), None),
        (Err(libc::ENOTTY), None),
    ];
    for (answer, expected) in answers {
        fake.set_data_size(answer);
        assert_eq!(device.estimated_size(), expected);
    }
}

#[test]
fn abandon_makes_a_device_usable_from_every_state() {
    for state in MigState::ALL {
        let (fake, _) = device(MigFlags::all());
        let mut device = opened(&fake);
        fake.force_state(state);
        let keeps = matches!(
            state,
            MigState::Running | MigState::RunningP2p | MigState::Stop
        );
        let intact = Outcome::Recovered {
            state: MigState::Running,
        };
        let expected = if keeps { intact } else { Outcome::WasReset };
        assert_eq!(device.abandon(), expected, "{state}");
        assert_eq!(fake.current_state(), MigState::Running);
    }
}
