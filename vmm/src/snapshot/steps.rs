//! The steps in which a snapshot directory changes, as tests see them.
//!
//! Tests record the steps to assert their order, and end the process at a chosen one to see what a crash leaves. In the
//! program itself a step is a line of the most verbose log.

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A file appears.
    Create,
    /// A file or the directory becomes durable.
    Sync,
    /// A file takes its final name.
    Rename,
    /// A file disappears.
    Remove,
}

#[cfg(not(test))]
pub fn step(step: Step, name: &str) {
    tracing::trace!("snapshot: {step:?} {name}");
}

#[cfg(test)]
pub use recorder::{CRASH_AT, record, step};

#[cfg(test)]
mod recorder {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::Step;

    /// Variable that names the step before which the process ends, counted from 1.
    pub const CRASH_AT: &str = "DORMOUSE_TEST_CRASH_AT";

    thread_local! {
        static RECORD: RefCell<Option<Vec<(Step, String)>>> = const { RefCell::new(None) };
    }

    /// Steps of the whole process so far.
    static COUNT: AtomicI64 = AtomicI64::new(0);

    pub fn step(step: Step, name: &str) {
        let number = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        if std::env::var(CRASH_AT).is_ok_and(|at| at.parse() == Ok(number)) {
            std::process::abort();
        }
        RECORD.with_borrow_mut(|record| {
            if let Some(record) = record {
                record.push((step, name.to_owned()));
            }
        });
    }

    /// The steps that `work` takes in this thread.
    pub fn record(work: impl FnOnce()) -> Vec<(Step, String)> {
        RECORD.set(Some(Vec::new()));
        work();
        RECORD.take().expect("set above")
    }
}
