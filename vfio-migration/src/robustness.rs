//! Random faults at random moments: whatever happens, no device is left in a session or in ERROR
//! without the caller being told that it is lost, and nothing panics.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;

use crate::error::{Failure, Outcome};
use crate::group::{GroupError, PeerDma, pause, resume};
use crate::migratable::MigratableDevice;
use crate::state::{MigFlags, MigState};
use crate::stream::{BUFFER_BYTES, StreamControl, StreamLimits};
use crate::testing::{Acceptance, Contents, FOREVER, Fault, ScriptedDevice, Trace};

const ERRNOS: [i32; 8] = [
    libc::EINTR,
    libc::EAGAIN,
    libc::EIO,
    libc::ENOMSG,
    libc::EMFILE,
    libc::ENODEV,
    libc::ENOMEM,
    libc::EINVAL,
];

#[derive(Clone, Copy, Debug)]
enum Action {
    Pause,
    Resume,
    Save,
    DropSave,
    Load,
    DropLoad,
    LoadAndKeep,
    ResetFromOutside,
}

/// The states that operations and their recovery ask for most.
const COMMON: [MigState; 4] = [
    MigState::Stop,
    MigState::Running,
    MigState::RunningP2p,
    MigState::StopCopy,
];

fn fault() -> impl Strategy<Value = Fault> {
    let state = || select(&MigState::ALL[..]);
    let errno = || select(&ERRNOS[..]);
    let at = || 0u64..130;
    let mixed = prop_oneof![
        (state(), 0usize..4, errno()).prop_map(|(to, hops, errno)| Fault::Set { to, hops, errno }),
        (state(), errno()).prop_map(|(to, errno)| Fault::SetBreaks { to, errno }),
        state().prop_map(|to| Fault::SetWithoutFd { to }),
        errno().prop_map(|errno| Fault::Get { errno }),
        (at(), errno()).prop_map(|(at, errno)| Fault::Read { at, errno }),
        at().prop_map(|at| Fault::ResetAtRead { at }),
        (at(), errno()).prop_map(|(at, errno)| Fault::Write { at, errno }),
        at().prop_map(|at| Fault::ShortWrite { at }),
        errno().prop_map(|errno| Fault::Reset { errno }),
        Just(Fault::IdleReset),
    ];
    // Half of all, since a recovery fails only where both it and the operation before it meet one of these.
    let set = (select(&COMMON[..]), 0usize..4, errno());
    let set = set.prop_map(|(to, hops, errno)| Fault::Set { to, hops, errno });
    prop_oneof![mixed, set]
}

fn action() -> impl Strategy<Value = Action> {
    select(
        &[
            Action::Pause,
            Action::Resume,
            Action::Save,
            Action::DropSave,
            Action::Load,
            Action::DropLoad,
            Action::LoadAndKeep,
            Action::ResetFromOutside,
        ][..],
    )
}

fn control<'a>() -> StreamControl<'a> {
    StreamControl {
        limits: StreamLimits {
            max_bytes: (2 * BUFFER_BYTES) as u64,
            max_stall: Duration::from_millis(2),
            max_interrupts: 10,
        },
        ..StreamControl::default()
    }
}

/// Does one thing; the outcome if it failed, and whether the device may stay in RESUMING.
fn act(
    action: Action,
    fake: &ScriptedDevice,
    device: &mut MigratableDevice,
) -> (Option<Outcome>, bool) {
    let single = |failure: Failure| failure.outcome;
    let group = |error| match error {
        GroupError::Device(failure) => failure.failure.outcome,
        GroupError::NoPeerToPeer { .. } => panic!("a single device needs no P2P"),
    };
    let blob: Vec<u8> = b"MODEL_A!".iter().copied().chain(0..92).collect();
    let result = match action {
        Action::Pause => pause(&mut [device], PeerDma::Possible).map_err(group),
        Action::Resume => resume(&mut [device], PeerDma::Possible).map_err(group),
        Action::Save => device
            .begin_saving()
            .and_then(|saving| saving.stream_to(&mut io::sink(), &mut control()).map(drop))
            .map_err(single),
        Action::DropSave => device.begin_saving().map(drop).map_err(single),
        Action::DropLoad => device.begin_resuming().map(drop).map_err(single),
        Action::Load | Action::LoadAndKeep => device
            .begin_resuming()
            .and_then(|resuming| resuming.load(&mut &blob[..], 100, &mut control()))
            .and_then(|loaded| match action {
                Action::Load => loaded.run(),
                _ => {
                    loaded.keep();
                    Ok(())
                }
            })
            .map_err(single),
        Action::ResetFromOutside => {
            fake.force_state(MigState::Running);
            Ok(())
        }
    };
    (result.err(), matches!(action, Action::LoadAndKeep))
}

fn is_lost(outcome: Option<Outcome>) -> bool {
    matches!(outcome, Some(Outcome::Lost(_)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn no_device_is_left_in_a_session_unless_it_is_reported_lost(
        steps in vec((action(), vec((fault(), select(&[1, 2, 9, FOREVER][..])), 0..3)), 1..8),
        p2p in any::<bool>(),
        checked in any::<bool>(),
        endless in any::<bool>(),
    ) {
        let flags = if p2p { MigFlags::STOP_COPY | MigFlags::P2P } else { MigFlags::STOP_COPY };
        let fake = ScriptedDevice::new("vfio0", flags, &Trace::new());
        if !checked {
            fake.set_acceptance(Acceptance::Anything);
        }
        if endless {
            fake.set_contents(Contents::Filled(u64::MAX));
        }
        let io: Arc<ScriptedDevice> = Arc::clone(&fake);
        let mut device = MigratableDevice::open("vfio0", io).unwrap().unwrap();
        let mut kept = false;
        for (action, faults) in steps {
            for (fault, times) in faults {
                fake.inject_times(fault, times);
            }
            let (outcome, may_keep) = act(action, &fake, &mut device);
            let dropped = device.take_dropped_outcome();
            assert_eq!(fake.open_fds(), 0, "{action:?}");
            assert!(fake.largest_transfer() <= BUFFER_BYTES);
            if is_lost(outcome) || is_lost(dropped) {
                break;
            }
            kept = (kept || may_keep) && fake.current_state() == MigState::Resuming;
            let state = fake.current_state();
            let clean = matches!(state, MigState::Running | MigState::Stop);
            assert!(clean || kept, "{action:?} left {state}, told {outcome:?} {dropped:?}");
            let told = match outcome {
                Some(Outcome::WasReset) => state == MigState::Running,
                Some(Outcome::Recovered { state: told }) => state == told,
                _ => true,
            };
            assert!(told, "{action:?} left {state}, told {outcome:?}");
            fake.heal();
        }
    }
}
