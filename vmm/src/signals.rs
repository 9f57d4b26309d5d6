//! The signals that end the process as events of the main loop, and the one that says that a file is at its limit as an error.
//!
//! The handler only remembers the number and writes one byte into a socket, which wakes the loop; so no thread has to keep the
//! signals blocked, and a vCPU that gets one merely leaves `KVM_RUN` and enters it again.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::control::Cancellation;
use crate::events::{EventSender, MachineEvent};

/// Signals that end the process: whoever sends them, the terminal and the sockets are left as they were.
const ENDING: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];

/// Those that whoever started the process may have had ignored, as `nohup` does, and that stay so then.
const IGNORABLE: [i32; 2] = [SIGHUP, SIGQUIT];

/// The subscriber that turns the signals into [`MachineEvent::Terminate`].
#[derive(Debug)]
pub struct Signals {
    wake: UnixStream,
    last: Arc<AtomicUsize>,
    events: EventSender,
}

impl Signals {
    /// Installs the handlers, for the rest of the process's life. They also end a long action of the loop, and all that follow.
    ///
    /// # Errors
    /// When the host has no descriptor left or refuses a handler.
    pub fn install(events: EventSender, cancellation: &Cancellation) -> io::Result<Self> {
        let (wake, handler_end) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        handler_end.set_nonblocking(true)?;
        let last = Arc::new(AtomicUsize::new(0));
        // With a handler the write fails with EFBIG instead, which is no worse than a full disk.
        signal_hook::flag::register(libc::SIGXFSZ, Arc::default())?;
        let ignored = ignored();
        for signal in ENDING {
            if IGNORABLE.contains(&signal) && ignored & (1 << (signal - 1)) != 0 {
                continue;
            }
            // The order matters: handlers run as registered, and the number must be there before the loop wakes.
            let number = usize::try_from(signal).expect("signal numbers are positive");
            signal_hook::flag::register_usize(signal, Arc::clone(&last), number)?;
            for flag in cancellation.set_by_signals() {
                signal_hook::flag::register(signal, flag)?;
            }
            signal_hook::low_level::pipe::register(signal, handler_end.try_clone()?)?;
        }
        let signals = Self { wake, last, events };
        // One that came before its handler could wake the loop has left its number.
        if signals.last.load(Ordering::SeqCst) != 0 {
            signals.report();
        }
        Ok(signals)
    }

    fn report(&self) {
        let number = self.last.load(Ordering::SeqCst);
        self.events.send(MachineEvent::Terminate(
            i32::try_from(number).unwrap_or(SIGTERM),
        ));
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let mut bytes = [0; 16];
        while matches!(self.wake.read(&mut bytes), Ok(1..)) {}
        self.report();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.wake, EventSet::IN)) {
            tracing::error!("cannot wait for the signals that end the process: {error}");
        }
    }
}

/// The signals that this process ignores, one bit each from number 1 on. None if the host does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
