//! The console's share of the main loop: input, connections, and output that had to wait.
//!
//! Nothing here can spin. A descriptor is watched only while an event on it would be acted upon:
//! input while the guest takes it, output while there is a backlog. Everything else, such as a
//! guest that has read its input or a vCPU thread whose write got stuck, arrives through the wake
//! event; after every event the watched set is computed anew.

use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;

use super::escape::Escape;
use super::host_fd::HostFd;
use super::output::Output;
use super::pty::Pty;
use super::socket::Listener;
use super::{AttachedPort, Endpoint};
use crate::guest_warn;

/// Typed input that waits for the guest; more is dropped. Other input waits in the host instead.
const PENDING_MAX: usize = 4096;
/// Reads in a row before the main loop gets to do other things.
const READS_PER_EVENT: usize = 16;

/// Serves the host end of the serial line in the main loop.
pub struct ConsoleSubscriber {
    output: Arc<Output>,
    port: AttachedPort,
    input: Option<Arc<HostFd>>,
    /// Input that cannot be watched, such as a file, and that is always ready.
    always_ready: bool,
    escape: Option<Escape>,
    on_quit: Box<dyn FnMut() + Send>,
    pending: Vec<u8>,
    listener: Option<Listener>,
    /// Not watched until something else happens, since accepting failed.
    listener_paused: bool,
    watched: Vec<(Arc<HostFd>, EventSet)>,
    /// Keeps the line of a pseudo-terminal from hanging up.
    _pty: Option<Pty>,
}

impl ConsoleSubscriber {
    pub(super) fn new(
        endpoint: Endpoint,
        output: Arc<Output>,
        port: AttachedPort,
        on_quit: Box<dyn FnMut() + Send>,
    ) -> Self {
        Self {
            output,
            port,
            input: endpoint.input,
            always_ready: false,
            escape: endpoint.escape,
            on_quit,
            pending: Vec::new(),
            listener: endpoint.listener,
            listener_paused: false,
            watched: Vec::new(),
            _pty: endpoint.pty,
        }
    }

    /// Moves input from the host to the guest until either has had enough.
    fn pump(&mut self) {
        for _ in 0..READS_PER_EVENT {
            self.deliver();
            if !self.reads_on() {
                return;
            }
            let Some(input) = self.input.clone() else {
                return;
            };
            let mut typed = [0; 256];
            match input.read(&mut typed) {
                Ok(0) => return self.end_input(&input),
                Ok(len) => self.take(&typed[..len]),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(error) => {
                    tracing::debug!("console: input ends: {error}");
                    return self.end_input(&input);
                }
            }
        }
        self.deliver();
        if self.always_ready && self.reads_on() {
            self.output.wake().set();
        }
    }

    /// Whether more input is wanted now. With an escape sequence it always is, or a user could not
    /// end a VM whose guest has stopped to read.
    fn reads_on(&self) -> bool {
        self.pending.is_empty() || self.escape.is_some()
    }

    fn take(&mut self, typed: &[u8]) {
        let quit = match &mut self.escape {
            Some(escape) => escape.filter(typed, &mut self.pending),
            None => {
                self.pending.extend_from_slice(typed);
                false
            }
        };
        self.pending.truncate(PENDING_MAX);
        if quit {
            (self.on_quit)();
        }
    }

    fn deliver(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let port = self
            .port
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(port) = port {
            let taken = port.receive(&self.pending);
            self.pending.drain(..taken);
        }
    }

    fn end_input(&mut self, input: &Arc<HostFd>) {
        self.input = None;
        self.always_ready = false;
        // A client may have shut down its sending half only, and still listen.
        if self.listener.is_none() || input.is_hung_up() {
            self.output.disconnect(input);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        match listener.accept() {
            Ok(client) => self.admit(client),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => (),
            Err(error) => {
                self.listener_paused = true;
                guest_warn!("console: cannot accept a client: {error}");
            }
        }
    }

    /// Lets `client` in unless there is another that lives.
    fn admit(&mut self, client: Arc<HostFd>) {
        let current = self.input.clone().or_else(|| self.output.sink());
        if current.is_some_and(|current| !current.peer_closed()) {
            tracing::info!("console: a client is connected, refused another");
            return;
        }
        self.input = Some(Arc::clone(&client));
        self.output.connect(client);
    }

    fn report_loss(&self) {
        if let Some(loss) = self.output.take_loss() {
            match loss.error {
                Some(error) => guest_warn!("console: lost {} bytes of output: {error}", loss.bytes),
                None => guest_warn!("console: lost {} bytes of output: slow reader", loss.bytes),
            }
        }
    }

    fn wanted(&self) -> Vec<(Arc<HostFd>, EventSet)> {
        let mut wanted = vec![(Arc::clone(self.output.wake().fd()), EventSet::IN)];
        if let Some(listener) = self.listener.as_ref().filter(|_| !self.listener_paused) {
            wanted.push((Arc::clone(listener.fd()), EventSet::IN));
        }
        if let Some(input) = &self.input
            && self.reads_on()
            && !self.always_ready
        {
            wanted.push((Arc::clone(input), EventSet::IN));
        }
        if let Some(sink) = self.output.blocked_on() {
            match wanted.iter_mut().find(|(fd, _)| Arc::ptr_eq(fd, &sink)) {
                Some((_, events)) => *events |= EventSet::OUT,
                None => wanted.push((sink, EventSet::OUT)),
            }
        }
        wanted
    }

    /// Brings what the main loop watches in line with what is wanted. The list of what is watched
    /// owns its descriptors, so that none is closed, and its number given away, while it is in use.
    fn update_watches(&mut self, ops: &mut EventOps) {
        let wanted = self.wanted();
        self.watched.retain(|(fd, _)| {
            let keep = wanted.iter().any(|(other, _)| Arc::ptr_eq(fd, other));
            if !keep && let Err(error) = ops.remove(Events::empty(fd)) {
                tracing::warn!("console: cannot stop watching a descriptor: {error}");
            }
            keep
        });
        for (fd, events) in wanted {
            let known = self
                .watched
                .iter_mut()
                .find(|(other, _)| Arc::ptr_eq(&fd, other));
            let event = Events::new(&fd, events);
            let done = match known {
                Some((_, current)) if *current == events => Ok(()),
                Some((_, current)) => {
                    *current = events;
                    ops.modify(event)
                }
                None => ops.add(event).inspect(|()| {
                    self.watched.push((Arc::clone(&fd), events));
                }),
            };
            if let Err(error) = done {
                self.cannot_watch(&fd, &error);
            }
        }
    }

    fn cannot_watch(&mut self, fd: &Arc<HostFd>, error: &event_manager::Error) {
        if self
            .input
            .as_ref()
            .is_some_and(|input| Arc::ptr_eq(input, fd))
        {
            // A file has no events. It is read whenever the guest takes input.
            self.always_ready = true;
            self.output.wake().set();
        } else {
            tracing::warn!("console: cannot watch a descriptor: {error}");
        }
    }
}

impl MutEventSubscriber for ConsoleSubscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        self.listener_paused = false;
        if self
            .listener
            .as_ref()
            .is_some_and(|l| l.fd().as_raw_fd() == fd)
        {
            self.accept();
        } else {
            self.output.wake().clear();
            self.output.flush();
            self.pump();
        }
        self.report_loss();
        self.update_watches(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.update_watches(ops);
    }
}

impl std::fmt::Debug for ConsoleSubscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleSubscriber")
            .field("input", &self.input)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}
