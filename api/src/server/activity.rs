//! What a connection does: whether an action of its client is under way, and since when it has asked for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared between a connection and whoever looks for one that can be closed.
pub(super) struct Activity {
    start: Instant,
    busy: AtomicBool,
    idle_since_ms: AtomicU64,
}

impl Activity {
    /// A connection that begins now, idle.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            busy: AtomicBool::new(false),
            idle_since_ms: AtomicU64::new(0),
        })
    }

    /// The client has asked for something.
    pub(super) fn touch(&self) {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.idle_since_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Whether an action is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// For how long the client has asked for nothing, unless an action is under way.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let since = Duration::from_millis(self.idle_since_ms.load(Ordering::Relaxed));
        (!self.is_busy()).then(|| self.start.elapsed().saturating_sub(since))
    }
}

/// Marks a connection busy for as long as it lives.
pub(super) struct Busy(Arc<Activity>);

impl Busy {
    /// Marks the connection of `activity`.
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.busy.store(true, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.store(false, Ordering::Relaxed);
    }
}
