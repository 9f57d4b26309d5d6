//! Work on many equal pieces of memory by all processors.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, available_parallelism};

/// More threads than this do not move memory any faster.
const MAX_THREADS: usize = 16;

/// Calls `work` for each of `0..units`, handed out in this order to several threads.
///
/// Each thread has its own `scratch`; all of them are returned. After an error no further unit is begun. The error returned
/// is the one of the lowest unit: every unit before it was done.
pub fn each_unit<S: Send, E: Send>(
    units: u64,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, u64) -> Result<(), E> + Sync,
) -> Result<Vec<S>, E> {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let run = || {
        let mut scratch = scratch();
        while !failed.load(Ordering::Relaxed) {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                break;
            }
            if let Err(error) = work(&mut scratch, unit) {
                failed.store(true, Ordering::Relaxed);
                return (scratch, Some((unit, error)));
            }
        }
        (scratch, None)
    };
    let processors = available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = processors.min(MAX_THREADS) as u64;
    let results = std::thread::scope(|scope| {
        // This thread works too, so a thread that cannot be had costs nothing but time.
        let helpers: Vec<_> = (1..threads.min(units))
            .map_while(|_| {
                let builder = Builder::new().name("memory".to_owned());
                builder.spawn_scoped(scope, run).ok()
            })
            .collect();
        let mut results = vec![run()];
        for helper in helpers {
            results.push(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        results
    });
    let (scratches, errors): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    match errors.into_iter().flatten().min_by_key(|(unit, _)| *unit) {
        Some((_, error)) => Err(error),
        None => Ok(scratches),
    }
}

#[cfg(test)]
mod tests {
    use super::each_unit;
    use crate::testing::without_threads;

    #[test]
    fn every_unit_is_done_once() {
        let done = each_unit(1000, Vec::new, |mine: &mut Vec<u64>, unit| {
            mine.push(unit);
            Ok::<_, ()>(())
        });
        let mut units = done.unwrap().concat();
        units.sort_unstable();
        assert_eq!(units, (0..1000).collect::<Vec<_>>());
        assert!(each_unit(0, || (), |(), _| Err(())).is_ok());
    }

    #[test]
    fn the_first_error_is_the_one_that_counts() {
        for _ in 0..50 {
            let failed = each_unit(
                1000,
                || (),
                |(), unit| {
                    if unit >= 100 { Err(unit) } else { Ok(()) }
                },
            );
            assert_eq!(failed.unwrap_err(), 100);
        }
    }

    #[test]
    fn for_want_of_threads_the_calling_one_does_all() {
        without_threads(|| {
            let count = each_unit(
                1000,
                || 0,
                |count, _| {
                    *count += 1;
                    Ok::<_, ()>(())
                },
            );
            assert_eq!(count, Ok(vec![1000]));
        });
    }
}
