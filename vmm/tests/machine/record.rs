//! One record of what happened, in order: the VMM's trace log beside the events of the fakes.

use std::fmt;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use dormouse_vfio_migration::testing::Trace;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Where the log of the running test goes.
static CURRENT: Mutex<Option<Trace>> = Mutex::new(None);
/// One test at a time, since the log is one.
static TURN: Mutex<()> = Mutex::new(());

/// Takes the log over for one test.
pub struct Recording {
    trace: Trace,
    _turn: MutexGuard<'static, ()>,
}

impl Recording {
    pub fn begin() -> Self {
        static INSTALL: Once = Once::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        INSTALL.call_once(|| tracing::subscriber::set_global_default(Log).unwrap());
        let trace = Trace::new();
        *CURRENT.lock().unwrap() = Some(trace.clone());
        Self { trace, _turn: turn }
    }

    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What happened since the last call.
    pub fn take(&self) -> Lines {
        let events = self.trace.events();
        self.trace.clear();
        Lines(events.iter().map(ToString::to_string).collect())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        *CURRENT.lock().unwrap() = None;
    }
}

/// What happened, one line each.
pub struct Lines(Vec<String>);

impl Lines {
    /// Positions of the lines that hold `pattern`.
    fn positions(&self, pattern: &str) -> Vec<usize> {
        let lines = self.0.iter().enumerate();
        lines
            .filter(|(_, line)| line.contains(pattern))
            .map(|(at, _)| at)
            .collect()
    }

    pub fn count(&self, pattern: &str) -> usize {
        self.positions(pattern).len()
    }

    /// For each pattern in turn: it happened, and all of it after all that the pattern before it matches.
    #[track_caller]
    pub fn assert_order(&self, patterns: &[&str]) {
        for pattern in patterns {
            assert!(self.count(pattern) > 0, "never: {pattern}\n{self}");
        }
        for pair in patterns.windows(2) {
            let last = self.positions(pair[0]).into_iter().max();
            let first = self.positions(pair[1]).into_iter().min();
            assert!(last < first, "{} not before {}\n{self}", pair[0], pair[1]);
        }
    }

    #[track_caller]
    pub fn assert_count(&self, pattern: &str, count: usize) {
        assert_eq!(self.count(pattern), count, "{pattern}\n{self}");
    }

    #[track_caller]
    pub fn assert_never(&self, patterns: &[&str]) {
        for pattern in patterns {
            self.assert_count(pattern, 0);
        }
    }

    /// The lines of one party, in order.
    pub fn of(&self, who: &str) -> Vec<&str> {
        let own = self.0.iter().filter_map(|line| line.strip_prefix(who));
        own.filter_map(|line| line.strip_prefix(": ")).collect()
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Puts the log lines of the VMM into the current record.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("dormouse_vmm")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(trace) = &*current else { return };
        match (line.phase, line.device.as_str()) {
            (None, _) => trace.note("vmm", &line.message),
            (Some(phase), "-") => trace.note("vmm", &format!("phase {phase}")),
            // State changes of devices are in the record already.
            (Some(_), _) => {}
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    phase: Option<String>,
    device: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "phase" => self.phase = Some(value.to_owned()),
            "device" => value.clone_into(&mut self.device),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.message, "{value:?}");
        }
    }
}
