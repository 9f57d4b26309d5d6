//! Which actions are to stop: those that a client has seen begin or wait when it cancels, and all once the process is to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who is to stop.
#[derive(Debug, Default)]
pub struct Cancellation {
    /// Read by the action that runs. Set under the lock, except by signals.
    running: Arc<AtomicBool>,
    /// Set by signals and never cleared.
    terminated: Arc<AtomicBool>,
    numbers: Mutex<Numbers>,
}

/// Requests are numbered as they are queued.
#[derive(Debug, Default)]
struct Numbers {
    last_queued: u64,
    /// The request that the main loop took up last.
    taken_up: Option<u64>,
    /// This one and all before it are cancelled.
    last_cancelled: u64,
}

impl Cancellation {
    /// A number for a request that is about to be queued.
    pub(super) fn number(&self) -> u64 {
        let mut numbers = self.numbers();
        numbers.last_queued += 1;
        numbers.last_queued
    }

    /// The main loop begins with the request of this number.
    pub(super) fn take_up(&self, number: u64) {
        self.numbers().taken_up = Some(number);
    }

    /// Cancels the action that runs and those that wait.
    pub fn cancel(&self) {
        let mut numbers = self.numbers();
        numbers.last_cancelled = numbers.last_queued;
        self.running.store(true, Ordering::SeqCst);
    }

    /// Begins an action, which may be cancelled already.
    pub fn begin(&self) {
        let numbers = self.numbers();
        let cancelled = numbers
            .taken_up
            .is_some_and(|number| number <= numbers.last_cancelled);
        self.running.store(cancelled, Ordering::SeqCst);
        // A signal from before has just been overwritten; one from now on sets `running` after `terminated`.
        if self.terminated.load(Ordering::SeqCst) {
            self.running.store(true, Ordering::SeqCst);
        }
    }

    /// Set when the action that runs is to stop.
    #[must_use]
    pub fn of_running(&self) -> &AtomicBool {
        &self.running
    }

    /// What a signal that ends the process has to set, in this order.
    #[must_use]
    pub fn set_by_signals(&self) -> [Arc<AtomicBool>; 2] {
        [Arc::clone(&self.terminated), Arc::clone(&self.running)]
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // Plain numbers are never half-changed.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Cancellation;
    use std::sync::atomic::Ordering;

    /// Takes up a request and begins its action; whether it is cancelled.
    fn begins_cancelled(cancellation: &Cancellation, number: u64) -> bool {
        cancellation.take_up(number);
        cancellation.begin();
        cancellation.of_running().load(Ordering::SeqCst)
    }

    #[test]
    fn cancelling_reaches_what_runs_and_waits_and_nothing_later() {
        let cancellation = Cancellation::default();
        let [first, second] = [cancellation.number(), cancellation.number()];
        assert!(!begins_cancelled(&cancellation, first));
        cancellation.cancel();
        assert!(cancellation.of_running().load(Ordering::SeqCst));
        let third = cancellation.number();
        assert!(begins_cancelled(&cancellation, second));
        assert!(!begins_cancelled(&cancellation, third));
        cancellation.cancel();
        let fourth = cancellation.number();
        assert!(!begins_cancelled(&cancellation, fourth));
    }

    #[test]
    fn cancelling_nothing_does_nothing() {
        let cancellation = Cancellation::default();
        cancellation.cancel();
        cancellation.begin();
        assert!(!cancellation.of_running().load(Ordering::SeqCst));
        let number = cancellation.number();
        assert!(!begins_cancelled(&cancellation, number));
    }

    #[test]
    fn termination_reaches_every_action() {
        let cancellation = Cancellation::default();
        for flag in cancellation.set_by_signals() {
            flag.store(true, Ordering::SeqCst);
        }
        for _ in 0..2 {
            let number = cancellation.number();
            assert!(begins_cancelled(&cancellation, number));
        }
    }
}
