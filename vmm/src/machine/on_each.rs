//! One thread for each device of a machine.

use std::thread::Builder;

/// Calls `work` with every item, each on a thread of its own, and waits for all. The first failure in the order of items counts. An
/// item for which the host has no thread is worked on by the calling one: slower, but a VM must not end for want of a thread.
pub fn on_each<T: Copy + Send, E: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let work = &work;
    std::thread::scope(|scope| {
        let mut own = Vec::new();
        let mut workers = Vec::new();
        for item in items {
            let builder = Builder::new().name("device".to_owned());
            match builder.spawn_scoped(scope, move || work(item)) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    tracing::warn!("devices are worked on one after another: no thread: {error}");
                    own.push(item);
                }
            }
        }
        let own: Vec<_> = own.into_iter().map(work).collect();
        let outcomes = workers
            .into_iter()
            .map(|worker| worker.join().expect("work on a device does not panic"));
        outcomes.chain(own).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::on_each;
    use crate::testing::without_threads;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn the_first_failure_counts_and_nothing_is_left_out() {
        let done = AtomicU32::new(0);
        let outcome = on_each(0..10_u32, |item| {
            done.fetch_add(1, Ordering::Relaxed);
            if item % 4 == 3 { Err(item) } else { Ok(()) }
        });
        assert_eq!((outcome, done.into_inner()), (Err(3), 10));
    }

    #[test]
    fn for_want_of_threads_the_calling_one_does_all() {
        without_threads(|| {
            let caller = std::thread::current().id();
            let done = AtomicU32::new(0);
            let outcome = on_each(0..10_u32, |item| {
                assert_eq!(std::thread::current().id(), caller);
                done.fetch_add(1, Ordering::Relaxed);
                if item % 4 == 3 { Err(item) } else { Ok(()) }
            });
            assert_eq!((outcome, done.into_inner()), (Err(3), 10));
        });
    }
}
