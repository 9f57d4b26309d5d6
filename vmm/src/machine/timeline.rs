//! When each phase of sleeping and waking began, how long it took and how many bytes it moved.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dormouse_api::response::{Operation, Phase, Timeline};

/// Records phases, from several threads at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    recorded: Arc<Mutex<Recorded>>,
}

#[derive(Debug)]
struct Recorded {
    origin: Instant,
    started_unix_ms: u64,
    phases: Vec<Phase>,
}

impl Recorded {
    fn begin() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            origin: Instant::now(),
            started_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            phases: Vec::new(),
        }
    }
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self {
            recorded: Arc::new(Mutex::new(Recorded::begin())),
        }
    }
}

impl Stopwatch {
    /// Does `work` as a phase; `bytes` tells from its result how many bytes it moved.
    pub fn phase<T>(
        &self,
        name: &str,
        device: Option<&str>,
        bytes: impl FnOnce(&T) -> u64,
        work: impl FnOnce() -> T,
    ) -> T {
        let start = Instant::now();
        let result = work();
        let bytes = bytes(&result);
        self.record(name, device, start, bytes);
        result
    }

    /// Records a phase that began at `start` and ends now.
    pub fn record(&self, name: &str, device: Option<&str>, start: Instant, bytes: u64) {
        let duration = start.elapsed();
        let mut recorded = self.lock();
        let phase = Phase {
            name: name.to_owned(),
            device: device.map(str::to_owned),
            start_us: micros(start.saturating_duration_since(recorded.origin)),
            duration_us: micros(duration),
            bytes,
        };
        let device = device.unwrap_or("-");
        tracing::info!(
            phase = name,
            device,
            us = phase.duration_us,
            bytes,
            "timeline"
        );
        recorded.phases.push(phase);
    }

    /// Begins anew after `phases`, as if they had just ended: what happened in between belongs to no action.
    pub fn continue_from(&self, phases: &[Phase]) {
        let fresh = Recorded::begin();
        let end = phases
            .iter()
            .map(|phase| phase.start_us + phase.duration_us)
            .max();
        let worked = Duration::from_micros(end.unwrap_or(0));
        *self.lock() = Recorded {
            origin: fresh.origin.checked_sub(worked).unwrap_or(fresh.origin),
            phases: phases.to_vec(),
            ..fresh
        };
    }

    /// The phases so far.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        self.lock().phases.clone()
    }

    /// What was recorded so far.
    #[must_use]
    pub fn timeline(&self, operation: Operation) -> Timeline {
        let recorded = self.lock();
        let mut phases = recorded.phases.clone();
        phases.sort_by_key(|phase| phase.start_us);
        let duration = phases
            .iter()
            .map(|phase| phase.start_us + phase.duration_us)
            .max();
        Timeline {
            operation,
            started_unix_ms: recorded.started_unix_ms,
            duration_us: duration.unwrap_or(0),
            phases,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        // A list of phases is whole whatever panics elsewhere.
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
