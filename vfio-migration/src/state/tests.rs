//! The walk of the state machine, against paths written out by hand from the kernel's table.

use proptest::prelude::{Strategy, any, proptest};
use proptest::sample::select;

use super::{FdEffect, MigFlags, MigState, UnknownState, next_hop, path};
use MigState::{Error, PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

const BASIC: MigFlags = MigFlags::STOP_COPY;
const P2P: MigFlags = MigFlags::STOP_COPY.union(MigFlags::P2P);
const PRE: MigFlags = MigFlags::STOP_COPY.union(MigFlags::PRE_COPY);
const FULL: MigFlags = MigFlags::all();

fn check(flags: MigFlags, from: MigState, to: MigState, expected: Option<&[MigState]>) {
    assert_eq!(
        path(from, to, flags).as_deref(),
        expected,
        "{from} to {to} with {flags:?}"
    );
}

#[test]
fn paths_follow_the_kernels_table() {
    check(FULL, Running, Stop, Some(&[RunningP2p, Stop]));
    check(P2P, Running, Stop, Some(&[RunningP2p, Stop]));
    check(BASIC, Running, Stop, Some(&[Stop]));
    check(PRE, Running, Stop, Some(&[Stop]));
    check(FULL, Running, Resuming, Some(&[RunningP2p, Stop, Resuming]));
    check(BASIC, Running, Resuming, Some(&[Stop, Resuming]));
    check(FULL, Resuming, Running, Some(&[Stop, RunningP2p, Running]));
    check(P2P, Resuming, RunningP2p, Some(&[Stop, RunningP2p]));
    check(BASIC, Resuming, Running, Some(&[Stop, Running]));
    check(FULL, Stop, StopCopy, Some(&[StopCopy]));
    check(FULL, StopCopy, Stop, Some(&[Stop]));
    check(FULL, StopCopy, Resuming, Some(&[Stop, Resuming]));
    check(FULL, Running, StopCopy, Some(&[RunningP2p, Stop, StopCopy]));
}

#[test]
fn saving_states_are_never_passed_through() {
    check(FULL, PreCopy, Stop, Some(&[Running, RunningP2p, Stop]));
    check(FULL, RunningP2p, PreCopy, Some(&[Running, PreCopy]));
    check(FULL, PreCopyP2p, Stop, Some(&[RunningP2p, Stop]));
    check(FULL, PreCopy, StopCopy, Some(&[PreCopyP2p, StopCopy]));
    check(PRE, PreCopy, StopCopy, Some(&[StopCopy]));
    check(PRE, PreCopy, Resuming, Some(&[Running, Stop, Resuming]));
}

#[test]
fn refused_requests_have_no_path() {
    check(FULL, StopCopy, PreCopy, None);
    check(FULL, StopCopy, PreCopyP2p, None);
    check(BASIC, Running, RunningP2p, None);
    check(P2P, Running, PreCopy, None);
    check(PRE, Running, PreCopyP2p, None);
    check(MigFlags::empty(), Running, Stop, None);
    for state in MigState::ALL {
        check(FULL, Error, state, None);
        check(FULL, state, Error, None);
    }
}

#[test]
fn a_request_for_the_present_state_walks_nowhere() {
    for state in MigState::ALL.into_iter().filter(|state| *state != Error) {
        check(FULL, state, state, Some(&[]));
    }
}

#[test]
fn only_the_last_hop_of_a_path_opens_a_descriptor() {
    for bits in 0..=7 {
        let flags = MigFlags::from_bits_truncate(bits);
        for from in MigState::ALL {
            for to in MigState::ALL {
                let Some(hops) = path(from, to, flags) else {
                    continue;
                };
                let mut at = from;
                for (index, hop) in hops.iter().enumerate() {
                    assert!(flags.supports(*hop), "{from} to {to} visits {hop}");
                    let effect = FdEffect::of_hop(at, *hop);
                    if matches!(effect, FdEffect::NewReader | FdEffect::NewWriter) {
                        assert_eq!(index + 1, hops.len(), "{from} to {to} with {flags:?}");
                    }
                    at = *hop;
                }
                assert_eq!(at, to);
            }
        }
    }
}

#[test]
fn sessions_open_and_end_where_the_header_says() {
    assert_eq!(FdEffect::of_hop(Stop, StopCopy), FdEffect::NewReader);
    assert_eq!(FdEffect::of_hop(Stop, Resuming), FdEffect::NewWriter);
    assert_eq!(FdEffect::of_hop(Resuming, Stop), FdEffect::Ends);
    assert_eq!(FdEffect::of_hop(StopCopy, Stop), FdEffect::Ends);
    assert_eq!(FdEffect::of_hop(PreCopyP2p, StopCopy), FdEffect::Continues);
    assert_eq!(FdEffect::of_hop(RunningP2p, Stop), FdEffect::None);
}

fn any_state() -> impl Strategy<Value = MigState> {
    select(&MigState::ALL[..])
}

proptest! {
    #[test]
    fn numbers_convert_both_ways_or_are_refused(number in any::<u32>(), small in 0u32..16) {
        for number in [number, small] {
            match MigState::try_from(number) {
                Ok(state) => assert_eq!(u32::from(state), number),
                Err(UnknownState(refused)) => {
                    assert_eq!(refused, number);
                    assert!(number >= 8);
                }
            }
        }
    }

    #[test]
    fn a_hop_from_anywhere_is_one_the_device_has(
        from in any_state(), to in any_state(), bits in any::<u64>()
    ) {
        let flags = MigFlags::from_bits_truncate(bits);
        if let Some(hop) = next_hop(from, to, flags) {
            assert!(flags.supports(hop));
        }
    }
}
