//! SIGTERM and SIGINT as events of the main loop.
//!
//! The handler only remembers the number and writes one byte into a socket, which wakes the loop; so no thread has to keep the
//! signals blocked, and a vCPU that gets one merely leaves `KVM_RUN` and enters it again.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::control::Cancellation;
use crate::events::{EventSender, MachineEvent};

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
        for signal in [SIGTERM, SIGINT] {
            // The order matters: handlers run as registered, and the number must be there before the loop wakes.
            let number = usize::try_from(signal).expect("signal numbers are positive");
            signal_hook::flag::register_usize(signal, Arc::clone(&last), number)?;
            for flag in cancellation.set_by_signals() {
                signal_hook::flag::register(signal, flag)?;
            }
            signal_hook::low_level::pipe::register(signal, handler_end.try_clone()?)?;
        }
        Ok(Self { wake, last, events })
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let mut bytes = [0; 16];
        while matches!(self.wake.read(&mut bytes), Ok(1..)) {}
        let number = self.last.load(Ordering::SeqCst);
        self.events.send(MachineEvent::Terminate(
            i32::try_from(number).unwrap_or(SIGTERM),
        ));
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.wake, EventSet::IN)) {
            tracing::error!("cannot wait for SIGTERM and SIGINT: {error}");
        }
    }
}
