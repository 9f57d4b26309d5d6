//! Loading: the order of requests, and that no failure is ever continued from.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, Failure, LostCause, Outcome};
use crate::group::{PeerDma, resume};
use crate::migratable::MigratableDevice;
use crate::state::{MigFlags, MigState};
use crate::stream::{BUFFER_BYTES, StreamControl, StreamError};
use crate::testing::{Acceptance, Contents, FOREVER, Fault, ScriptedDevice, Step, Trace};

const P2P: MigFlags = MigFlags::STOP_COPY.union(MigFlags::P2P);

fn fresh(flags: MigFlags) -> (Arc<ScriptedDevice>, MigratableDevice, Trace) {
    let trace = Trace::new();
    let fake = ScriptedDevice::new("vfio0", flags, &trace);
    let io: Arc<ScriptedDevice> = Arc::clone(&fake);
    let device = MigratableDevice::open("vfio0", io).unwrap().unwrap();
    trace.clear();
    (fake, device, trace)
}

fn blob() -> Vec<u8> {
    b"MODEL_A!".iter().copied().chain((0..92).rev()).collect()
}

fn load(device: &mut MigratableDevice, blob: &[u8], length: u64) -> Result<(), Failure> {
    let resuming = device.begin_resuming()?;
    let loaded = resuming.load(&mut &blob[..], length, &mut StreamControl::default())?;
    loaded.run()
}

/// After a failed load the device was reset, nothing is open, and a good load works.
fn check_next_attempt_works(fake: &ScriptedDevice, device: &mut MigratableDevice) {
    assert_eq!(fake.current_state(), MigState::Running);
    assert_eq!(fake.open_fds(), 0);
    fake.heal();
    load(device, &blob(), 100).unwrap();
    assert_eq!(fake.contents(), Contents::Bytes(blob()));
}

#[test]
fn a_load_is_one_request_to_resuming_and_stays_there() {
    let (fake, mut device, trace) = fresh(P2P);
    let resuming = device.begin_resuming().unwrap();
    let mut control = StreamControl::default();
    let loaded = resuming.load(&mut &blob()[..], 100, &mut control).unwrap();
    assert_eq!(fake.current_state(), MigState::Resuming);
    trace.note("config", "write PCI_COMMAND");
    loaded.run().unwrap();
    assert_eq!(
        trace.changes(),
        [
            "vfio0: RUNNING -> RESUMING",
            "vfio0: close",
            "config: write PCI_COMMAND",
            "vfio0: RESUMING -> RUNNING",
        ]
    );
    assert_eq!(fake.contents(), Contents::Bytes(blob()));
    assert_eq!(fake.unguarded_calls(), 0);
}

#[test]
fn a_kept_device_waits_in_resuming_for_its_group() {
    let (fake, mut device, trace) = fresh(P2P);
    let mut control = StreamControl::default();
    let resuming = device.begin_resuming().unwrap();
    resuming
        .load(&mut &blob()[..], 100, &mut control)
        .unwrap()
        .keep();
    trace.clear();
    assert_eq!(fake.current_state(), MigState::Resuming);
    resume(&mut [&mut device], PeerDma::Possible).unwrap();
    let expected = [
        "vfio0: RESUMING -> RUNNING_P2P",
        "vfio0: RUNNING_P2P -> RUNNING",
    ];
    assert_eq!(trace.changes(), expected);
    assert_eq!(fake.contents(), Contents::Bytes(blob()));
}

#[test]
fn a_restored_vm_can_be_saved_before_it_ever_runs() {
    let (_fake, mut device, _) = fresh(P2P);
    let mut control = StreamControl::default();
    let resuming = device.begin_resuming().unwrap();
    resuming
        .load(&mut &blob()[..], 100, &mut control)
        .unwrap()
        .keep();
    let mut again = Vec::new();
    let saving = device.begin_saving().unwrap();
    saving.stream_to(&mut again, &mut control).unwrap();
    assert_eq!(again, blob());
}

#[test]
fn a_failure_to_start_leaves_a_running_device() {
    for hops in 0..=3 {
        let (fake, mut device, _) = fresh(P2P);
        fake.inject(Fault::Set {
            to: MigState::Resuming,
            hops,
            errno: libc::EMFILE,
        });
        let failure = load(&mut device, &blob(), 100).unwrap_err();
        let intact = Outcome::Recovered {
            state: MigState::Running,
        };
        let expected = if hops == 0 { intact } else { Outcome::WasReset };
        assert_eq!(failure.outcome, expected, "after {hops} hops");
        check_next_attempt_works(&fake, &mut device);
    }
    let (fake, mut device, _) = fresh(P2P);
    fake.inject(Fault::SetWithoutFd {
        to: MigState::Resuming,
    });
    assert_eq!(
        load(&mut device, &blob(), 100).unwrap_err().outcome,
        Outcome::WasReset
    );
    check_next_attempt_works(&fake, &mut device);
}

#[test]
fn a_failed_or_short_write_is_final() {
    let faults = [
        Fault::Write {
            at: 0,
            errno: libc::EFAULT,
        },
        Fault::Write {
            at: 0,
            errno: libc::ENOMEM,
        },
        Fault::Write {
            at: 99,
            errno: libc::ENOSPC,
        },
        Fault::Write {
            at: 50,
            errno: libc::EINTR,
        },
        Fault::Write {
            at: 50,
            errno: libc::EAGAIN,
        },
        Fault::ShortWrite { at: 0 },
        Fault::ShortWrite { at: 99 },
    ];
    for fault in faults {
        let (fake, mut device, trace) = fresh(P2P);
        fake.set_acceptance(Acceptance::Anything);
        fake.inject(fault);
        let failure = load(&mut device, &blob(), 100).unwrap_err();
        assert_eq!(failure.outcome, Outcome::WasReset, "{fault:?}");
        assert!(matches!(
            failure.error,
            Error::Load(StreamError::DeviceWrite { offset: 0, .. })
                | Error::Load(StreamError::ShortWrite {
                    offset: 0,
                    given: 100,
                    ..
                })
        ));
        let writes = trace
            .events()
            .into_iter()
            .filter(|event| matches!(event.what, Step::Write(_) | Step::DataFailed(_)));
        assert_eq!(writes.count(), 1, "{fault:?}");
        let left_otherwise = trace.first(|event| {
            matches!(
                event.what,
                Step::Set {
                    from: MigState::Resuming,
                    ..
                }
            )
        });
        assert_eq!(left_otherwise, None, "{fault:?}");
        check_next_attempt_works(&fake, &mut device);
    }
}

#[test]
fn a_blob_that_does_not_fit_the_device_ends_in_a_reset() {
    let mut other_model = blob();
    other_model[..8].copy_from_slice(b"MODEL_B!");
    let mut longer = blob();
    longer.push(0);
    let shorter = &blob()[..99];
    let headless = &blob()[1..];
    for bytes in [&other_model[..], &longer, shorter, headless, &[]] {
        let (fake, mut device, _) = fresh(P2P);
        let failure = load(&mut device, bytes, bytes.len() as u64).unwrap_err();
        assert_eq!(failure.outcome, Outcome::WasReset, "{failure}");
        check_next_attempt_works(&fake, &mut device);
    }
}

#[test]
fn a_file_that_ends_early_never_lets_the_device_run() {
    let (fake, mut device, trace) = fresh(P2P);
    fake.set_acceptance(Acceptance::Anything);
    let failure = load(&mut device, &blob()[..60], 100).unwrap_err();
    let truncated = Error::Load(StreamError::Truncated {
        expected: 100,
        found: 60,
    });
    assert_eq!(failure.error.to_string(), truncated.to_string());
    assert!(matches!(
        failure.error,
        Error::Load(StreamError::Truncated { found: 60, .. })
    ));
    assert_eq!(
        trace.changes(),
        ["vfio0: RUNNING -> RESUMING", "vfio0: close", "vfio0: reset"]
    );
    check_next_attempt_works(&fake, &mut device);
}

#[test]
fn bytes_after_the_length_are_not_read() {
    let (_fake, mut device, _) = fresh(P2P);
    let mut followed = blob();
    followed.extend_from_slice(b"next");
    let mut reader = &followed[..];
    let mut control = StreamControl::default();
    let resuming = device.begin_resuming().unwrap();
    resuming
        .load(&mut reader, 100, &mut control)
        .unwrap()
        .run()
        .unwrap();
    assert_eq!(reader, b"next");
}

/// Gives one byte at a time, interrupted before each, and fails at the end.
struct Trickle {
    bytes: Vec<u8>,
    at: usize,
    interrupt: bool,
    end: Option<i32>,
}

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let Some(byte) = self.bytes.get(self.at) else {
            return self
                .end
                .map_or(Ok(0), |errno| Err(io::Error::from_raw_os_error(errno)));
        };
        buf[0] = *byte;
        self.at += 1;
        Ok(1)
    }
}

#[test]
fn a_slow_file_is_gathered_and_a_broken_one_ends_in_a_reset() {
    let mut trickle = Trickle {
        bytes: blob(),
        at: 0,
        interrupt: false,
        end: None,
    };
    let (fake, mut device, trace) = fresh(P2P);
    let mut control = StreamControl::default();
    let resuming = device.begin_resuming().unwrap();
    resuming
        .load(&mut trickle, 100, &mut control)
        .unwrap()
        .run()
        .unwrap();
    assert_eq!(fake.contents(), Contents::Bytes(blob()));
    assert!(
        trace
            .first(|event| event.what == Step::Write(100))
            .is_some()
    );

    let mut broken = Trickle {
        bytes: vec![1; 9],
        at: 0,
        interrupt: false,
        end: Some(libc::EIO),
    };
    let (fake, mut device, _) = fresh(P2P);
    let resuming = device.begin_resuming().unwrap();
    let failure = resuming.load(&mut broken, 100, &mut control).unwrap_err();
    assert!(matches!(
        failure.error,
        Error::Load(StreamError::Fetch { offset: 9, .. })
    ));
    assert_eq!(failure.outcome, Outcome::WasReset);
    check_next_attempt_works(&fake, &mut device);
}

#[test]
fn a_large_blob_passes_in_bounded_pieces() {
    let (fake, mut device, _) = fresh(P2P);
    fake.set_acceptance(Acceptance::Anything);
    let length = (5 << 20) + 3;
    let mut control = StreamControl::default();
    let mut seen = 0;
    let mut progress = |bytes: u64| seen = bytes;
    control.progress = Some(&mut progress);
    let resuming = device.begin_resuming().unwrap();
    let loaded = resuming
        .load(&mut io::repeat(7), length, &mut control)
        .unwrap();
    loaded.run().unwrap();
    assert_eq!(seen, length);
    assert_eq!(fake.contents().length(), length);
    assert_eq!(fake.largest_transfer(), BUFFER_BYTES);
    assert!(fake.largest_transfer() <= 1 << 20);
}

#[test]
fn a_cancelled_load_resets_the_device() {
    let (fake, mut device, _) = fresh(P2P);
    let cancel = AtomicBool::new(true);
    let mut control = StreamControl {
        cancel: Some(&cancel),
        ..StreamControl::default()
    };
    let resuming = device.begin_resuming().unwrap();
    let failure = resuming
        .load(&mut &blob()[..], 100, &mut control)
        .unwrap_err();
    assert!(matches!(
        failure.error,
        Error::Load(StreamError::Cancelled { offset: 0 })
    ));
    check_next_attempt_works(&fake, &mut device);
}

#[test]
fn dropped_sessions_reset_the_device_and_say_so() {
    let (fake, mut device, _) = fresh(P2P);
    drop(device.begin_resuming().unwrap());
    assert_eq!(device.take_dropped_outcome(), Some(Outcome::WasReset));
    let mut control = StreamControl::default();
    let resuming = device.begin_resuming().unwrap();
    drop(resuming.load(&mut &blob()[..], 100, &mut control).unwrap());
    assert_eq!(device.take_dropped_outcome(), Some(Outcome::WasReset));
    check_next_attempt_works(&fake, &mut device);
}

#[test]
fn a_device_that_refuses_to_run_is_reset_whatever_hop_it_reached() {
    for hops in 0..=3 {
        let (fake, mut device, trace) = fresh(P2P);
        fake.inject(Fault::Set {
            to: MigState::Running,
            hops,
            errno: libc::EIO,
        });
        let failure = load(&mut device, &blob(), 100).unwrap_err();
        assert_eq!(failure.outcome, Outcome::WasReset, "after {hops} hops");
        assert!(trace.changes().contains(&"vfio0: reset".to_owned()));
        check_next_attempt_works(&fake, &mut device);
    }
}

#[test]
fn a_reset_from_outside_is_noticed_before_the_device_runs() {
    let (fake, mut device, trace) = fresh(P2P);
    let mut control = StreamControl::default();
    let resuming = device.begin_resuming().unwrap();
    let loaded = resuming.load(&mut &blob()[..], 100, &mut control).unwrap();
    fake.force_state(MigState::Running);
    trace.clear();
    let failure = loaded.run().unwrap_err();
    assert!(matches!(failure.error, Error::ResetFromOutside { .. }));
    assert_eq!(failure.outcome, Outcome::WasReset);
    assert!(trace.changes().is_empty());
}

#[test]
fn only_a_running_device_can_be_loaded() {
    let (fake, mut device, _) = fresh(P2P);
    fake.force_state(MigState::Stop);
    let failure = device.begin_resuming().unwrap_err();
    assert_eq!(failure.outcome, Outcome::Untouched);
    assert_eq!(fake.current_state(), MigState::Stop);
}

#[test]
fn a_failed_reset_is_reported_as_lost_with_the_first_error() {
    let (fake, mut device, _) = fresh(MigFlags::STOP_COPY);
    fake.inject(Fault::Write {
        at: 4,
        errno: libc::EFAULT,
    });
    fake.inject_times(
        Fault::Reset {
            errno: libc::EINVAL,
        },
        FOREVER,
    );
    let failure = load(&mut device, &blob(), 100).unwrap_err();
    let cause = LostCause::ResetFailed {
        errno: libc::EINVAL,
    };
    assert_eq!(failure.outcome, Outcome::Lost(cause));
    assert!(failure.to_string().contains("cannot load"), "{failure}");
    assert_eq!(fake.open_fds(), 0);
}

/// Counts its reads.
struct Counted<'a>(&'a [u8], u32);

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        self.0.read(buffer)
    }
}

#[test]
fn an_empty_state_is_loaded_and_its_source_read_to_the_end() {
    let (fake, mut device, _) = fresh(P2P);
    let mut control = StreamControl::default();
    let mut source = Counted(&[], 0);
    let resuming = device.begin_resuming().unwrap();
    resuming.load(&mut source, 0, &mut control).unwrap().keep();
    assert_eq!((source.1, fake.current_state()), (1, MigState::Resuming));
    let _ = device.abandon();

    let resuming = device.begin_resuming().unwrap();
    let failure = resuming.load(&mut &b"x"[..], 0, &mut control).unwrap_err();
    assert!(matches!(failure.error, Error::Load(StreamError::NotEmpty)));
    assert_eq!(failure.outcome, Outcome::WasReset);
    check_next_attempt_works(&fake, &mut device);
}
