//! Saving: the order of requests, every way to fail, bounded memory, and that nothing is left over.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Failure, LostCause, Outcome};
use crate::group::{PeerDma, pause, resume};
use crate::migratable::MigratableDevice;
use crate::state::{MigFlags, MigState};
use crate::stream::{BUFFER_BYTES, StreamControl, StreamError, StreamLimits};
use crate::testing::{Contents, FOREVER, Fault, ScriptedDevice, Trace};

const P2P: MigFlags = MigFlags::STOP_COPY.union(MigFlags::P2P);
const STOPPED: Outcome = Outcome::Recovered {
    state: MigState::Stop,
};

fn stopped() -> (Arc<ScriptedDevice>, MigratableDevice, Trace) {
    let trace = Trace::new();
    let fake = ScriptedDevice::new("vfio0", P2P, &trace);
    let io: Arc<ScriptedDevice> = Arc::clone(&fake);
    let mut device = MigratableDevice::open("vfio0", io).unwrap().unwrap();
    pause(&mut [&mut device], PeerDma::Possible).unwrap();
    trace.clear();
    (fake, device, trace)
}

fn control<'a>() -> StreamControl<'a> {
    StreamControl {
        limits: StreamLimits {
            max_interrupts: 50,
            ..StreamLimits::default()
        },
        ..StreamControl::default()
    }
}

fn save(device: &mut MigratableDevice) -> Result<Vec<u8>, Failure> {
    let mut blob = Vec::new();
    let saving = device.begin_saving()?;
    let bytes = saving.stream_to(&mut blob, &mut control())?;
    assert_eq!(bytes, blob.len() as u64);
    Ok(blob)
}

/// After a failed save the device is in STOP, its descriptors are closed, and all works again.
fn check_all_well(fake: &ScriptedDevice, device: &mut MigratableDevice) {
    assert_eq!(fake.current_state(), MigState::Stop);
    assert_eq!(fake.open_fds(), 0);
    fake.heal();
    assert_eq!(save(device).unwrap().len() as u64, fake.contents().length());
    resume(&mut [device], PeerDma::Possible).unwrap();
    assert_eq!(fake.current_state(), MigState::Running);
}

#[test]
fn a_save_goes_from_stop_through_stop_copy_back_to_stop() {
    let (fake, mut device, trace) = stopped();
    let blob = save(&mut device).unwrap();
    assert_eq!(Contents::Bytes(blob), fake.contents());
    assert_eq!(
        trace.changes(),
        [
            "vfio0: STOP -> STOP_COPY",
            "vfio0: STOP_COPY -> STOP",
            "vfio0: close"
        ]
    );
    assert_eq!(fake.unguarded_calls(), 0);
}

#[test]
fn stop_is_asked_for_only_after_the_read_that_gave_the_end() {
    let (_fake, mut device, trace) = stopped();
    save(&mut device).unwrap();
    let lines: Vec<String> = trace.events().iter().map(ToString::to_string).collect();
    let end = lines
        .iter()
        .position(|line| line == "vfio0: read 0")
        .unwrap();
    let stop = lines
        .iter()
        .position(|line| line == "vfio0: STOP_COPY -> STOP")
        .unwrap();
    assert!(end < stop, "{lines:?}");
}

#[test]
fn a_paused_vm_can_be_saved_twice_and_resumed() {
    let (fake, mut device, _) = stopped();
    let first = save(&mut device).unwrap();
    assert_eq!(save(&mut device).unwrap(), first);
    check_all_well(&fake, &mut device);
}

#[test]
fn a_running_device_is_refused_untouched() {
    let (fake, mut device, trace) = stopped();
    resume(&mut [&mut device], PeerDma::Possible).unwrap();
    trace.clear();
    let failure = device.begin_saving().unwrap_err();
    assert_eq!(failure.outcome, Outcome::Untouched);
    assert!(trace.changes().is_empty());
    assert_eq!(fake.current_state(), MigState::Running);
}

#[test]
fn a_failure_to_start_returns_to_stop() {
    let faults = [
        Fault::Set {
            to: MigState::StopCopy,
            hops: 0,
            errno: libc::EIO,
        },
        Fault::Set {
            to: MigState::StopCopy,
            hops: 1,
            errno: libc::EMFILE,
        },
        Fault::SetWithoutFd {
            to: MigState::StopCopy,
        },
    ];
    for fault in faults {
        let (fake, mut device, _) = stopped();
        fake.inject(fault);
        let failure = save(&mut device).unwrap_err();
        assert_eq!(failure.outcome, STOPPED, "{fault:?}");
        check_all_well(&fake, &mut device);
    }
}

#[test]
fn a_device_that_breaks_on_the_way_is_reset() {
    let (fake, mut device, _) = stopped();
    fake.inject(Fault::SetBreaks {
        to: MigState::StopCopy,
        errno: libc::EIO,
    });
    let failure = save(&mut device).unwrap_err();
    assert_eq!(failure.outcome, Outcome::WasReset);
    assert!(matches!(
        failure.error,
        Error::Transition {
            to: MigState::StopCopy,
            ..
        }
    ));
    assert_eq!(fake.current_state(), MigState::Running);
}

#[test]
fn reads_of_every_size_give_the_same_bytes() {
    for longest in [1, 7, 24, 99, 100] {
        let (fake, mut device, _) = stopped();
        fake.set_longest_read(longest);
        assert_eq!(Contents::Bytes(save(&mut device).unwrap()), fake.contents());
    }
}

#[test]
fn answers_that_lose_nothing_are_repeated() {
    for errno in [libc::EINTR, libc::EAGAIN, libc::ENOMSG] {
        for at in [0, 24, 100] {
            let (fake, mut device, _) = stopped();
            fake.inject_times(Fault::Read { at, errno }, 5);
            assert_eq!(Contents::Bytes(save(&mut device).unwrap()), fake.contents());
        }
    }
}

#[test]
fn storms_of_such_answers_end() {
    for errno in [libc::EINTR, libc::EAGAIN, libc::ENOMSG] {
        let (fake, mut device, _) = stopped();
        fake.inject_times(Fault::Read { at: 24, errno }, FOREVER);
        let mut control = control();
        control.limits.max_stall = Duration::from_millis(20);
        let saving = device.begin_saving().unwrap();
        let failure = saving.stream_to(&mut io::sink(), &mut control).unwrap_err();
        assert_eq!(failure.outcome, STOPPED);
        match failure.error {
            Error::Save(StreamError::Interrupted {
                offset: 24,
                times: 51,
            }) => {
                assert_eq!(errno, libc::EINTR);
            }
            Error::Save(StreamError::Stalled { offset: 24, .. }) => {
                assert_ne!(errno, libc::EINTR);
            }
            other => panic!("{other}"),
        }
        check_all_well(&fake, &mut device);
    }
}

#[test]
fn a_read_error_ends_the_session_at_once() {
    for errno in [libc::EIO, libc::ENODEV, libc::ENOMEM] {
        let (fake, mut device, trace) = stopped();
        fake.inject(Fault::Read { at: 50, errno });
        let failure = save(&mut device).unwrap_err();
        assert_eq!(failure.outcome, STOPPED);
        let expected = matches!(
            failure.error,
            Error::Save(StreamError::DeviceRead { offset: 50, ref source })
                if source.raw_os_error() == Some(errno)
        );
        assert!(expected, "{failure}");
        let failed = trace.first(|event| event.to_string().contains("data failed"));
        let last_read = trace.last(|event| event.to_string().contains("read"));
        assert!(last_read < failed, "no read after the error");
        check_all_well(&fake, &mut device);
    }
}

#[test]
fn an_endless_stream_is_cut_off() {
    let (fake, mut device, _) = stopped();
    fake.set_contents(Contents::Filled(u64::MAX));
    let mut control = control();
    control.limits.max_bytes = (3 * BUFFER_BYTES) as u64;
    let saving = device.begin_saving().unwrap();
    let mut meter = Meter::default();
    let failure = saving.stream_to(&mut meter, &mut control).unwrap_err();
    assert!(
        meter.bytes <= control.limits.max_bytes,
        "{} bytes stored",
        meter.bytes
    );
    let limit = control.limits.max_bytes;
    assert!(
        matches!(failure.error, Error::Save(StreamError::TooLong { limit: at }) if at == limit)
    );
    fake.set_contents(Contents::Filled(limit));
    let saving = device.begin_saving().unwrap();
    assert_eq!(
        saving.stream_to(&mut io::sink(), &mut control).unwrap(),
        limit
    );
    fake.set_contents(Contents::Filled(100));
    check_all_well(&fake, &mut device);
}

/// Counts what it is given and how.
#[derive(Default)]
struct Meter {
    bytes: u64,
    pieces: u64,
    largest: usize,
    misaligned: u64,
}

impl Write for Meter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.bytes += buf.len() as u64;
        self.pieces += 1;
        self.largest = self.largest.max(buf.len());
        self.misaligned += u64::from(!buf.as_ptr().addr().is_multiple_of(4096));
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_large_state_passes_in_whole_aligned_pieces_and_bounded_memory() {
    let (fake, mut device, trace) = stopped();
    let pieces = 40;
    let length = (pieces * BUFFER_BYTES + 5) as u64;
    fake.set_contents(Contents::Filled(length));
    fake.set_longest_read(BUFFER_BYTES / 2 + 1);
    let mut meter = Meter::default();
    let saving = device.begin_saving().unwrap();
    saving.stream_to(&mut meter, &mut control()).unwrap();
    assert_eq!(meter.bytes, length);
    assert_eq!(meter.pieces, pieces as u64 + 1);
    assert_eq!((meter.largest, meter.misaligned), (BUFFER_BYTES, 0));
    assert!(fake.largest_transfer() <= BUFFER_BYTES);
    assert!(fake.largest_transfer() <= 1 << 20);
    let reads = trace
        .events()
        .iter()
        .filter(|e| e.to_string().contains("read"))
        .count();
    assert!(reads <= 2 * pieces + 2, "{reads} reads");
}

/// Takes so many bytes, then fails.
struct FullDisk(usize);

impl Write for FullDisk {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(self.0);
        self.0 -= taken;
        if taken == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_returns_the_device_to_stop() {
    let (fake, mut device, _) = stopped();
    let saving = device.begin_saving().unwrap();
    let failure = saving
        .stream_to(&mut FullDisk(30), &mut control())
        .unwrap_err();
    assert!(matches!(
        failure.error,
        Error::Save(StreamError::Store { .. })
    ));
    assert_eq!(failure.outcome, STOPPED);
    check_all_well(&fake, &mut device);
}

#[test]
fn a_cancel_at_any_piece_returns_the_device_to_stop() {
    for at_piece in 0..4 {
        let (fake, mut device, _) = stopped();
        fake.set_contents(Contents::Filled((4 * BUFFER_BYTES) as u64));
        let cancel = AtomicBool::new(at_piece == 0);
        let mut pieces = 0;
        let mut progress = |_bytes: u64| {
            pieces += 1;
            cancel.store(pieces >= at_piece, Ordering::Relaxed);
        };
        let mut control = control();
        control.cancel = Some(&cancel);
        control.progress = Some(&mut progress);
        let saving = device.begin_saving().unwrap();
        let failure = saving.stream_to(&mut io::sink(), &mut control).unwrap_err();
        let at = (at_piece * BUFFER_BYTES) as u64;
        assert!(
            matches!(failure.error, Error::Save(StreamError::Cancelled { offset }) if offset == at)
        );
        fake.set_contents(Contents::Filled(9));
        check_all_well(&fake, &mut device);
    }
}

#[test]
fn progress_counts_every_byte() {
    let (fake, mut device, _) = stopped();
    fake.set_contents(Contents::Filled((2 * BUFFER_BYTES + 1) as u64));
    let mut seen = Vec::new();
    let mut progress = |bytes: u64| seen.push(bytes);
    let mut control = control();
    control.progress = Some(&mut progress);
    let saving = device.begin_saving().unwrap();
    saving.stream_to(&mut io::sink(), &mut control).unwrap();
    let piece = BUFFER_BYTES as u64;
    assert_eq!(seen, [piece, 2 * piece, 2 * piece + 1]);
}

#[test]
fn a_failure_to_stop_after_the_stream_fails_the_save() {
    let (fake, mut device, _) = stopped();
    fake.inject(Fault::Set {
        to: MigState::Stop,
        hops: 0,
        errno: libc::EIO,
    });
    let failure = save(&mut device).unwrap_err();
    assert_eq!(failure.outcome, STOPPED);
    check_all_well(&fake, &mut device);

    let (fake, mut device, _) = stopped();
    fake.inject_times(
        Fault::Set {
            to: MigState::Stop,
            hops: 0,
            errno: libc::EIO,
        },
        2,
    );
    assert_eq!(save(&mut device).unwrap_err().outcome, Outcome::WasReset);
    assert_eq!(fake.current_state(), MigState::Running);
}

#[test]
fn a_reset_from_outside_is_noticed_during_and_after_the_stream() {
    for at in [0, 50, 100] {
        let (fake, mut device, _) = stopped();
        fake.inject(Fault::ResetAtRead { at });
        let failure = save(&mut device).unwrap_err();
        assert_eq!(failure.outcome, Outcome::WasReset, "at {at}");
        assert_eq!(fake.current_state(), MigState::Running);
    }
    let (fake, mut device, _) = stopped();
    let mut progress = |_bytes: u64| fake.force_state(MigState::Running);
    let mut control = control();
    control.progress = Some(&mut progress);
    let saving = device.begin_saving().unwrap();
    let failure = saving.stream_to(&mut io::sink(), &mut control).unwrap_err();
    assert!(
        matches!(failure.error, Error::ResetFromOutside { .. }),
        "{failure}"
    );
    assert_eq!(failure.outcome, Outcome::WasReset);
}

#[test]
fn a_dropped_session_returns_to_stop_and_says_so() {
    let (fake, mut device, _) = stopped();
    drop(device.begin_saving().unwrap());
    assert_eq!(device.take_dropped_outcome(), Some(STOPPED));
    assert_eq!(device.take_dropped_outcome(), None);
    check_all_well(&fake, &mut device);
}

#[test]
fn a_panic_while_storing_returns_to_stop() {
    struct Bomb;
    impl Write for Bomb {
        fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
            panic!("no disk")
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (fake, mut device, _) = stopped();
    let saving = device.begin_saving().unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| {
        saving.stream_to(&mut Bomb, &mut control()).map(drop)
    }));
    assert!(result.is_err());
    check_all_well(&fake, &mut device);
}

#[test]
fn a_device_beyond_help_is_reported_lost() {
    let (fake, mut device, _) = stopped();
    fake.inject(Fault::Read {
        at: 3,
        errno: libc::EIO,
    });
    fake.inject_times(
        Fault::Set {
            to: MigState::Stop,
            hops: 0,
            errno: libc::EIO,
        },
        FOREVER,
    );
    fake.inject_times(
        Fault::Reset {
            errno: libc::EINVAL,
        },
        FOREVER,
    );
    let failure = save(&mut device).unwrap_err();
    let cause = LostCause::ResetFailed {
        errno: libc::EINVAL,
    };
    assert_eq!(failure.outcome, Outcome::Lost(cause));
    assert!(matches!(
        failure.error,
        Error::Save(StreamError::DeviceRead { .. })
    ));
    assert_eq!(fake.open_fds(), 0);
}

#[test]
fn devices_are_saved_side_by_side() {
    let (_, mut first, _) = stopped();
    let (_, mut second, _) = stopped();
    let blobs = std::thread::scope(|scope| {
        let threads = [&mut first, &mut second].map(|device| scope.spawn(|| save(device)));
        threads.map(|thread| thread.join().unwrap().unwrap())
    });
    assert_eq!(blobs[0], blobs[1]);
}
