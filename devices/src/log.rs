//! Logging of what a guest can trigger, bounded per call site and second.
//!
//! A guest that misbehaves in a loop must not fill the host's log. [`guest_warn!`](crate::guest_warn)
//! and [`guest_debug!`](crate::guest_debug) take what tracing's macros take; each call site lets
//! [`PER_SECOND`] lines through in a second and reports with the next line how many it swallowed.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[doc(hidden)]
pub use tracing as __tracing;

/// Lines that one call site may write in one second.
pub const PER_SECOND: u32 = 5;

/// Counts the lines of one call site.
#[derive(Debug)]
pub struct RateLimit {
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    start: Option<Instant>,
    used: u32,
    suppressed: u64,
}

impl RateLimit {
    /// A limit with nothing counted yet.
    pub const fn new() -> Self {
        Self {
            window: Mutex::new(Window {
                start: None,
                used: 0,
                suppressed: 0,
            }),
        }
    }

    /// `Some` if a line may be written now, with the number of lines suppressed since the last.
    pub fn permit(&self) -> Option<u64> {
        self.permit_at(Instant::now())
    }

    fn permit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let expired = window
            .start
            .is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1));
        if expired {
            window.start = Some(now);
            window.used = 0;
        }
        if window.used < PER_SECOND {
            window.used += 1;
            Some(std::mem::take(&mut window.suppressed))
        } else {
            window.suppressed = window.suppressed.saturating_add(1);
            None
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// `tracing::warn!` for something that a guest can trigger.
#[macro_export]
macro_rules! guest_warn {
    ($($arg:tt)+) => {{
        static LIMIT: $crate::log::RateLimit = $crate::log::RateLimit::new();
        if let Some(suppressed) = LIMIT.permit() {
            $crate::log::__tracing::warn!(suppressed, $($arg)+);
        }
    }};
}

/// `tracing::debug!` for something that a guest can trigger.
#[macro_export]
macro_rules! guest_debug {
    ($($arg:tt)+) => {{
        static LIMIT: $crate::log::RateLimit = $crate::log::RateLimit::new();
        if let Some(suppressed) = LIMIT.permit() {
            $crate::log::__tracing::debug!(suppressed, $($arg)+);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_its_size_reported() {
        let limit = RateLimit::new();
        let start = Instant::now();
        let passed = (0..1000)
            .filter(|_| limit.permit_at(start).is_some())
            .count();
        assert_eq!(passed, PER_SECOND as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(limit.permit_at(later), Some(1000 - u64::from(PER_SECOND)));
        assert_eq!(limit.permit_at(later), Some(0));
    }

    #[test]
    fn an_earlier_clock_reading_is_not_a_new_second() {
        let limit = RateLimit::new();
        let start = Instant::now() + Duration::from_secs(10);
        for _ in 0..PER_SECOND {
            assert!(limit.permit_at(start).is_some());
        }
        assert_eq!(limit.permit_at(start - Duration::from_secs(5)), None);
    }
}
