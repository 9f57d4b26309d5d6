//! Ranges that are refused, reports that are split, bitmaps that become ranges.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use super::{LoggingError, MAX_RANGES, REPORT_PAGES, checked_ranges, for_each_run};
use crate::device::IovaRange;
use crate::migratable::MigratableDevice;
use crate::state::MigFlags;
use crate::testing::{Fault, ScriptedDevice, Trace};

const PAGE: u64 = 4096;

fn range(iova: u64, length: u64) -> IovaRange {
    IovaRange { iova, length }
}

fn device() -> (Arc<ScriptedDevice>, MigratableDevice, Trace) {
    let trace = Trace::new();
    let fake = ScriptedDevice::new("vfio0", MigFlags::all(), &trace);
    let io: Arc<ScriptedDevice> = Arc::clone(&fake);
    let device = MigratableDevice::open("vfio0", io).unwrap().unwrap();
    (fake, device, trace)
}

#[test]
fn unfit_ranges_are_refused_before_the_device_is_asked() {
    let (_fake, device, trace) = device();
    let many = |count: u64| {
        (0..count)
            .map(|i| range(i * 2 * PAGE, PAGE))
            .collect::<Vec<_>>()
    };
    assert!(checked_ranges(PAGE, &many(MAX_RANGES as u64)).is_ok());
    let cases: [(u64, Vec<IovaRange>); 9] = [
        (PAGE, vec![]),
        (PAGE, many(MAX_RANGES as u64 + 1)),
        (0, many(1)),
        (2048, many(1)),
        (5000, many(1)),
        (PAGE, vec![range(1, PAGE)]),
        (PAGE, vec![range(0, 0)]),
        (PAGE, vec![range(u64::MAX - PAGE + 1, 2 * PAGE)]),
        (PAGE, vec![range(2 * PAGE, PAGE), range(0, 3 * PAGE)]),
    ];
    for (page_size, ranges) in cases {
        let refused = device.start_dma_logging(page_size, &ranges);
        assert!(refused.is_err(), "{page_size} {ranges:?}");
    }
    assert!(trace.changes().is_empty());
}

#[test]
fn a_log_reports_each_range_on_its_own_and_in_bounded_pieces() {
    let (_fake, device, trace) = device();
    let long = range(1 << 40, (REPORT_PAGES + 3) * PAGE);
    let mut log = device
        .start_dma_logging(PAGE, &[long, range(0, PAGE)])
        .unwrap();
    let mut found = Vec::new();
    log.report(&mut |range| found.push(range)).unwrap();
    assert_eq!(found, [range(0, PAGE), range(1 << 40, PAGE)]);
    log.stop().unwrap();
    assert_eq!(
        trace.changes(),
        [
            "vfio0: logging start",
            "vfio0: logging report",
            "vfio0: logging report",
            "vfio0: logging report",
            "vfio0: logging stop",
        ]
    );
}

#[test]
fn a_failed_report_is_an_error_and_a_dropped_log_is_stopped() {
    let (fake, device, trace) = device();
    fake.inject(Fault::Logging {
        verb: "report",
        errno: libc::EIO,
    });
    let mut log = device.start_dma_logging(PAGE, &[range(0, PAGE)]).unwrap();
    let error = log
        .report(&mut |_| panic!("nothing was reported"))
        .unwrap_err();
    assert!(matches!(error, LoggingError::Report { .. }), "{error}");
    drop(log);
    assert_eq!(trace.changes().last().unwrap(), "vfio0: logging stop");
}

#[test]
fn a_refused_start_is_not_followed_by_a_stop() {
    for errno in [libc::E2BIG, libc::EINVAL, libc::EOPNOTSUPP] {
        let (fake, device, trace) = device();
        fake.inject(Fault::Logging {
            verb: "start",
            errno,
        });
        let error = device
            .start_dma_logging(PAGE, &[range(0, PAGE)])
            .err()
            .unwrap();
        assert!(matches!(error, LoggingError::Start { .. }), "{error}");
        assert!(trace.changes().is_empty());
    }
}

#[test]
fn a_device_with_larger_pages_than_the_ranges_is_refused_and_stopped() {
    let (fake, device, trace) = device();
    fake.set_logging_page(65536);
    let refused = device.start_dma_logging(PAGE, &[range(0, 5 * PAGE)]);
    assert!(matches!(
        refused,
        Err(LoggingError::Range {
            page_size: 65536,
            ..
        })
    ));
    assert_eq!(
        trace.changes(),
        ["vfio0: logging start", "vfio0: logging stop"]
    );
    assert!(device.start_dma_logging(PAGE, &[range(0, 65536)]).is_ok());
}

proptest! {
    #[test]
    fn runs_cover_exactly_the_set_bits(
        words in vec(any::<u64>(), 0..6), dense in any::<bool>(), pages in 1u64..400
    ) {
        let words: Vec<u64> = words.iter().map(|w| if dense { w | w << 1 | w >> 1 } else { *w }).collect();
        let base = 1 << 32;
        let mut covered = Vec::new();
        let mut last_end = None;
        for_each_run(&words, range(base, pages * PAGE), PAGE, &mut |run| {
            assert!(run.length > 0 && last_end != Some(run.iova), "runs touch");
            last_end = run.end();
            covered.extend((0..run.length / PAGE).map(|i| (run.iova - base) / PAGE + i));
        });
        let set = |page: &u64| {
            let word = words.get((page / 64) as usize).copied().unwrap_or(0);
            word >> (page % 64) & 1 == 1
        };
        let expected: Vec<u64> = (0..pages).filter(set).collect();
        assert_eq!(covered, expected);
    }

    #[test]
    fn any_ranges_are_accepted_only_if_apart(
        raw in vec((0u64..40, 0u64..6), 0..8), page_shift in 0u32..20
    ) {
        let ranges: Vec<IovaRange> = raw.iter().map(|(at, len)| range(at * PAGE, len * PAGE)).collect();
        if let Ok(sorted) = checked_ranges(1 << page_shift, &ranges) {
            assert!(sorted.windows(2).all(|pair| pair[0].iova + pair[0].length <= pair[1].iova));
            assert_eq!(sorted.len(), ranges.len());
        }
    }
}
