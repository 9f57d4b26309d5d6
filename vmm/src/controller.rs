//! The main loop: owns the machine and what outlives it, and acts on what guests, signals and API clients ask for.

mod devices;
mod requests;
mod sleep;
mod slot;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dormouse_api::config::{self, ConfigError, SerialConfig, VmConfig};
use dormouse_devices::console::{
    Console, ConsoleError, ConsoleMode, ConsoleSubscriber, restore_terminal,
};
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::control::{Calls, Remote};
use crate::events::{EventQueue, MachineEvent};
use crate::kvm::{self, Kvm, StopReason};
use crate::limits;
use crate::machine::{BuildError, Host, KernelFunctions, Machine, PauseError};
use crate::seccomp;
use crate::signals::Signals;
use crate::vcpu_thread;
pub use sleep::Error as RestoreFailure;
use slot::{Slot, Vm};

/// What guests ask for in one turn of the loop, at most: one that resets for ever must keep nobody else waiting.
const EVENTS_PER_TURN: usize = 8;
/// How long the end of the process waits for a slow reader of the guest's last output.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// Why the process cannot go on, or a VM not start.
#[derive(Debug, Error)]
pub enum Error {
    /// KVM cannot be used.
    #[error("cannot use KVM")]
    Kvm(#[source] kvm::Error),
    /// The event loop does not work.
    #[error("cannot wait for events")]
    EventLoop(#[source] event_manager::Error),
    /// No descriptor or handler for events or signals.
    #[error("cannot {what}")]
    Setup {
        /// What was being done, as the end of a sentence that starts with "cannot".
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The filter of the main thread could not be installed.
    #[error("cannot confine the process")]
    Seccomp(#[source] seccomp::Error),
    /// The config cannot boot.
    #[error("cannot boot the VM: its config is not valid")]
    Config(#[source] ConfigError),
    /// A console could not be opened.
    #[error("cannot open the serial console")]
    Console(#[source] ConsoleError),
    /// The machine could not be built.
    #[error("cannot boot the VM")]
    Build(#[source] BuildError),
    /// A vCPU thread died.
    #[error("cannot run the VM")]
    Vcpu(#[source] vcpu_thread::Error),
    /// The guest reset when it was paused, and its new machine cannot be paused.
    #[error("cannot keep the VM paused")]
    Pause(#[source] PauseError),
    /// The guest or KVM stopped a vCPU.
    #[error("vCPU {vcpu} stopped: {reason}; --log-level debug shows its registers")]
    VcpuStopped {
        /// Index of the vCPU.
        vcpu: u32,
        /// Why.
        reason: StopReason,
    },
}

/// How the main loop ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// A signal that ends the process.
    Terminated(i32),
    /// The user typed the escape sequence that ends the VM.
    Quit,
    /// An API client asked the VMM to end.
    Shutdown,
}

/// What the end of the guest means for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The process ends with its guest.
    OfTheGuest,
    /// The process waits for an API client to boot another.
    OfTheServer,
}

/// What a turn of the loop did.
enum Turn {
    /// Nothing: the next one may wait for something to do. Whatever is queued from then on wakes it up.
    Idle,
    /// Something, and there may be more to do.
    Busy,
    /// It ended the loop.
    End(Outcome),
}

/// Subscribers of the event loop, of different types.
type Subscribers = EventManager<Box<dyn MutEventSubscriber>>;

/// Wakes the loop when another thread has queued something; the loop then looks at its queues itself.
struct Wake(Arc<EventFd>);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Only resets the counter. It is non-blocking, so a spurious wake-up costs nothing.
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.0.as_ref(), EventSet::IN)) {
            tracing::error!("cannot wait for the machine's events: {error}");
        }
    }
}

/// An open console and its place in the event loop.
struct OpenConsole {
    console: Console,
    subscriber: SubscriberId,
}

/// The main loop and its VM.
pub struct Controller {
    vm: Option<Vm>,
    console: Option<OpenConsole>,
    host: Host,
    queue: EventQueue,
    calls: Calls,
    subscribers: Subscribers,
    lifetime: Lifetime,
}

impl Controller {
    /// Opens KVM, takes over the signals and confines this thread and all that it starts.
    ///
    /// # Errors
    /// When KVM cannot be used or the process cannot be set up.
    pub fn new(seccomp_mode: seccomp::Mode, lifetime: Lifetime) -> Result<Self, Error> {
        restore_terminal_on_panic();
        let kvm = Kvm::open().map_err(Error::Kvm)?;
        kvm::install_kick_handler().map_err(Error::Kvm)?;
        limits::raise_open_files();
        let queue = EventQueue::new().map_err(|source| Error::Setup {
            what: "create the event queue",
            source,
        })?;
        let mut subscribers = Subscribers::new().map_err(Error::EventLoop)?;
        let calls = Calls::new(queue.wake());
        let signals =
            Signals::install(queue.sender(), calls.shared().cancellation()).map_err(|source| {
                Error::Setup {
                    what: "take over the signals that end the process",
                    source,
                }
            })?;
        subscribers.add_subscriber(Box::new(signals));
        subscribers.add_subscriber(Box::new(Wake(queue.wake())));
        seccomp::apply(seccomp_mode, seccomp::Role::Vmm).map_err(Error::Seccomp)?;
        let host = Host {
            kvm: Arc::new(kvm),
            events: queue.sender(),
            seccomp: seccomp_mode,
            functions: Box::new(KernelFunctions),
        };
        Ok(Self {
            vm: None,
            console: None,
            host,
            calls,
            queue,
            subscribers,
            lifetime,
        })
    }

    /// What an API server calls.
    #[must_use]
    pub fn remote(&self) -> Arc<Remote> {
        self.calls.remote()
    }

    /// Builds the machine that `config` describes and starts it.
    ///
    /// # Errors
    /// When the config is not valid or the machine cannot be built; the config is kept, as after `vm.create`.
    pub fn boot(&mut self, config: VmConfig) -> Result<(), Error> {
        self.vm = Some(Vm::new(config));
        self.start()
    }

    /// Boots the VM that was created.
    fn start(&mut self) -> Result<(), Error> {
        let Some(machine) = self.build()? else {
            return Ok(());
        };
        machine.start().map_err(Error::Vcpu)?;
        self.set_slot(Slot::Running(machine));
        Ok(())
    }

    /// Builds the machine of the VM, if one was created; it does not run yet.
    fn build(&mut self) -> Result<Option<Machine>, Error> {
        let Some(vm) = &self.vm else { return Ok(None) };
        let config = Arc::clone(&vm.config);
        config.validate().map_err(Error::Config)?;
        self.open_console(&config.serial)?;
        let console = self.console.as_ref().map(|open| &open.console);
        let machine = Machine::build(&config, &self.host, console).map_err(Error::Build)?;
        Ok(Some(machine))
    }

    /// Opens the console, once for all machines that this VM goes through.
    fn open_console(&mut self, config: &SerialConfig) -> Result<(), Error> {
        if self.console.is_none() {
            let events = self.queue.sender();
            let (console, subscriber) = Console::open(&console_mode(config), move || {
                events.send(MachineEvent::Quit)
            })
            .map_err(Error::Console)?;
            let subscriber: Box<ConsoleSubscriber> = Box::new(subscriber);
            let subscriber = self.subscribers.add_subscriber(subscriber);
            self.console = Some(OpenConsole {
                console,
                subscriber,
            });
        }
        Ok(())
    }

    /// Serves events and requests until the process is to end.
    ///
    /// # Errors
    /// When the guest or the VMM cannot go on.
    pub fn run(&mut self) -> Result<Outcome, Error> {
        let mut wait = true;
        let outcome = loop {
            match self.serve_once(wait) {
                Ok(Turn::Idle) => wait = true,
                Ok(Turn::Busy) => wait = false,
                Ok(Turn::End(outcome)) => break Ok(outcome),
                Err(error) => break Err(error),
            }
        };
        self.calls.close();
        self.end_machine(Slot::Down);
        self.close_console();
        outcome
    }

    /// One turn: signals and consoles, then guests, then one client. Each gets its share however busy the others are.
    fn serve_once(&mut self, wait: bool) -> Result<Turn, Error> {
        let timeout_ms = if wait { -1 } else { 0 };
        match self.subscribers.run_with_timeout(timeout_ms) {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(Error::EventLoop(error)),
        }
        let mut turn = Turn::Idle;
        // Before a request: what a client sees after a pause is what the vCPUs did until then.
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = self.queue.next() else {
                break;
            };
            turn = Turn::Busy;
            if let Some(outcome) = self.handle(event)? {
                return Ok(Turn::End(outcome));
            }
        }
        if let Some(call) = self.calls.next() {
            turn = Turn::Busy;
            if let Some(outcome) = self.answer(call) {
                return Ok(Turn::End(outcome));
            }
        }
        Ok(turn)
    }

    fn handle(&mut self, event: MachineEvent) -> Result<Option<Outcome>, Error> {
        let ended = match event {
            MachineEvent::Reset => {
                tracing::info!("the guest resets");
                self.reset().err()
            }
            MachineEvent::PowerOff => {
                tracing::info!("the guest powered off");
                if self.lifetime == Lifetime::OfTheGuest {
                    return Ok(Some(Outcome::PowerOff));
                }
                self.end_machine(Slot::PoweredOff);
                None
            }
            MachineEvent::DeviceAlarm => {
                self.publish();
                None
            }
            MachineEvent::Quit => {
                tracing::info!("the user ended the VM");
                return Ok(Some(Outcome::Quit));
            }
            MachineEvent::Terminate(signal) => {
                tracing::info!(signal, "told to end");
                return Ok(Some(Outcome::Terminated(signal)));
            }
            MachineEvent::VcpuStopped { vcpu, reason } => Some(Error::VcpuStopped { vcpu, reason }),
        };
        match ended {
            None => Ok(None),
            Some(error) if self.lifetime == Lifetime::OfTheGuest => Err(error),
            Some(error) => {
                tracing::error!("the VM ended: {}", chain(&error));
                self.end_machine(Slot::PoweredOff);
                Ok(None)
            }
        }
    }

    /// Drops the machine and builds it anew, devices reset.
    fn restart(&mut self) -> Result<(), Error> {
        self.drop_machine(Slot::Down);
        let outcome = self.start();
        self.publish();
        outcome
    }

    /// As [`Self::restart`], for a reset that the guest asked for: a VM that was paused right then stays so.
    fn reset(&mut self) -> Result<(), Error> {
        let slot = self.vm.as_ref().map(|vm| &vm.slot);
        if !matches!(slot, Some(Slot::Paused(_))) {
            return self.restart();
        }
        self.drop_machine(Slot::Down);
        let outcome = self.start_paused();
        self.publish();
        outcome
    }

    /// Builds the machine of the VM, and stops it before it runs.
    fn start_paused(&mut self) -> Result<(), Error> {
        let Some(machine) = self.build()? else {
            return Ok(());
        };
        let paused = machine.pause().map_err(|refusal| Error::Pause(refusal.1))?;
        self.set_slot(Slot::Paused(paused));
        Ok(())
    }

    /// Drops the machine, if there is one, and lets clients see that.
    fn end_machine(&mut self, slot: Slot) {
        self.drop_machine(slot);
        self.publish();
    }

    /// Drops the machine, if there is one. Clients go on seeing it: when another one follows, a VM that only resets would seem to be
    /// down for a moment.
    fn drop_machine(&mut self, slot: Slot) {
        if let Some(vm) = &mut self.vm {
            vm.slot = slot;
        }
        if let Some(open) = &self.console {
            open.console.detach();
        }
        // What the old machine's vCPUs still had to say concerns nobody any more.
        self.queue.forget_machine();
    }

    /// Gives the guest's last output to whoever reads it, and closes the console.
    fn close_console(&mut self) {
        if let Some(open) = self.console.take() {
            open.console.drain(DRAIN_LIMIT);
            // Only fails for a subscriber that is not there.
            let _ = self.subscribers.remove_subscriber(open.subscriber);
        }
    }

    fn set_slot(&mut self, slot: Slot) {
        if let Some(vm) = &mut self.vm {
            vm.slot = slot;
        }
        self.publish();
    }

    /// Lets API clients see the state as it is now.
    fn publish(&self) {
        let shared = self.calls.shared();
        let mut info = self.vm.as_ref().map(Vm::info);
        let pty = self.console.as_ref().and_then(|open| open.console.path());
        if let Some(serial) = info.as_mut().map(|info| &mut info.config.serial)
            && serial.mode == config::ConsoleMode::Pty
        {
            // Where else would a client learn it?
            serial.file = pty.map(Path::to_owned);
        }
        shared.publish(info);
        let machine = self.vm.as_ref().and_then(Vm::machine);
        shared.publish_counters(machine.map(|machine| Arc::clone(machine.counters())));
    }
}

/// The console that the config asks for. `VmConfig::validate` has made sure that the paths are there.
fn console_mode(config: &SerialConfig) -> ConsoleMode {
    let path = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
    match config.mode {
        config::ConsoleMode::Off => ConsoleMode::Off,
        config::ConsoleMode::Pty => ConsoleMode::Pty,
        config::ConsoleMode::Tty => ConsoleMode::Tty,
        config::ConsoleMode::File => ConsoleMode::File(path(&config.file)),
        config::ConsoleMode::Socket => ConsoleMode::Socket(path(&config.socket)),
        config::ConsoleMode::Null => ConsoleMode::Null,
    }
}

/// A bug must not leave the user's terminal raw. The message comes after it is usable again.
fn restore_terminal_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore_terminal();
        report(panic);
    }));
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
