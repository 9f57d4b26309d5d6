//! What happened, in order, across all the fakes of a test.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::state::MigState;

/// One thing that happened to one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The id of the device, or the name of another fake.
    pub who: String,
    /// What happened.
    pub what: Step,
}

/// Kinds of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The state was asked for.
    Get(MigState),
    /// A SET succeeded.
    Set {
        /// The state before.
        from: MigState,
        /// The state asked for and reached.
        to: MigState,
    },
    /// A SET failed.
    SetFailed {
        /// The state before.
        from: MigState,
        /// The state asked for.
        to: MigState,
        /// The answer.
        errno: i32,
        /// The state it left behind.
        now: MigState,
    },
    /// Bytes were read from a data descriptor.
    Read(usize),
    /// Bytes were written to a data descriptor.
    Write(usize),
    /// A data descriptor answered an errno.
    DataFailed(i32),
    /// A data descriptor was closed.
    Close,
    /// The device was reset.
    Reset,
    /// A reset failed.
    ResetFailed(i32),
    /// DMA logging was started, reported or stopped.
    Logging(&'static str),
    /// Something that another fake reports.
    Note(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.who)?;
        match &self.what {
            Step::Get(state) => write!(f, "GET {state}"),
            Step::Set { from, to } => write!(f, "{from} -> {to}"),
            Step::SetFailed {
                from,
                to,
                errno,
                now,
            } => {
                write!(f, "{from} -> {to} failed with {errno} in {now}")
            }
            Step::Read(bytes) => write!(f, "read {bytes}"),
            Step::Write(bytes) => write!(f, "write {bytes}"),
            Step::DataFailed(errno) => write!(f, "data failed with {errno}"),
            Step::Close => f.write_str("close"),
            Step::Reset => f.write_str("reset"),
            Step::ResetFailed(errno) => write!(f, "reset failed with {errno}"),
            Step::Logging(verb) => write!(f, "logging {verb}"),
            Step::Note(text) => f.write_str(text),
        }
    }
}

/// A shared record of events; clones record into the same one.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    events: Arc<Mutex<Vec<Event>>>,
}

impl Trace {
    /// An empty record.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event.
    pub fn push(&self, who: &str, what: Step) {
        let who = who.to_owned();
        self.lock().push(Event { who, what });
    }

    /// Records what another fake saw, for example an MMIO access or a KVM call.
    pub fn note(&self, who: &str, text: &str) {
        self.push(who, Step::Note(text.to_owned()));
    }

    /// Everything so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// Everything so far that changed something (no GET, no bytes), one line each.
    #[must_use]
    pub fn changes(&self) -> Vec<String> {
        let passive = |what: &Step| matches!(what, Step::Get(_) | Step::Read(_) | Step::Write(_));
        self.lock()
            .iter()
            .filter(|event| !passive(&event.what))
            .map(ToString::to_string)
            .collect()
    }

    /// Forgets everything so far.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The position of the first event that `matches`.
    pub fn first(&self, matches: impl Fn(&Event) -> bool) -> Option<usize> {
        self.lock().iter().position(matches)
    }

    /// The position of the last event that `matches`.
    pub fn last(&self, matches: impl Fn(&Event) -> bool) -> Option<usize> {
        self.lock().iter().rposition(matches)
    }
}
