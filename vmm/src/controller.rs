//! The main loop: owns the machine and what outlives it, and acts on what guests, signals and API clients ask for.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use dormouse_api::config::{self, ConfigError, SerialConfig, VmConfig};
use dormouse_devices::console::{
    Console, ConsoleError, ConsoleMode, ConsoleSubscriber, restore_terminal,
};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::events::{EventQueue, MachineEvent};
use crate::kvm::{self, Kvm, StopReason};
use crate::machine::{BuildError, Host, Machine};
use crate::seccomp;
use crate::signals::Signals;
use crate::vcpu_thread;

/// Why the process cannot go on.
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
    /// The guest or KVM stopped a vCPU.
    #[error("vCPU {vcpu} stopped: {reason}; --log-level debug shows its registers")]
    VcpuStopped {
        /// Index of the vCPU.
        vcpu: u32,
        /// Why.
        reason: StopReason,
    },
    /// A thread of the VMM could not do its work.
    #[error("a thread of the VMM failed")]
    Thread(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How the main loop ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// SIGTERM or SIGINT.
    Terminated(i32),
    /// The user typed the escape sequence that ends the VM.
    Quit,
}

/// How long the end of the process waits for a slow reader of the guest's last output.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

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

/// The main loop and its machine.
pub struct Controller {
    machine: Option<Machine>,
    config: Option<VmConfig>,
    console: Option<Console>,
    host: Host,
    queue: EventQueue,
    subscribers: Subscribers,
    _terminated_by: Arc<AtomicUsize>,
}

impl Controller {
    /// Opens KVM, takes over the signals and confines this thread and all that it starts.
    ///
    /// # Errors
    /// When KVM cannot be used or the process cannot be set up.
    pub fn new(seccomp_mode: seccomp::Mode) -> Result<Self, Error> {
        restore_terminal_on_panic();
        let kvm = Kvm::open().map_err(Error::Kvm)?;
        kvm::install_kick_handler().map_err(Error::Kvm)?;
        let queue = EventQueue::new().map_err(|source| Error::Setup {
            what: "create the event queue",
            source,
        })?;
        let mut subscribers = Subscribers::new().map_err(Error::EventLoop)?;
        let signals = Signals::install(queue.sender()).map_err(|source| Error::Setup {
            what: "take over SIGTERM and SIGINT",
            source,
        })?;
        let terminated_by = signals.last();
        subscribers.add_subscriber(Box::new(signals));
        subscribers.add_subscriber(Box::new(Wake(queue.wake())));
        seccomp::apply(seccomp_mode, seccomp::Role::Vmm).map_err(Error::Seccomp)?;
        let host = Host {
            kvm,
            events: queue.sender(),
            seccomp: seccomp_mode,
        };
        Ok(Self {
            machine: None,
            config: None,
            console: None,
            host,
            queue,
            subscribers,
            _terminated_by: terminated_by,
        })
    }

    /// Builds the machine that `config` describes and starts it.
    ///
    /// # Errors
    /// When the config is not valid or the machine cannot be built; nothing is left behind then.
    pub fn boot(&mut self, config: VmConfig) -> Result<(), Error> {
        config.validate().map_err(Error::Config)?;
        if self.console.is_none() {
            let (console, subscriber) = self.open_console(&config.serial)?;
            self.subscribers.add_subscriber(Box::new(subscriber));
            self.console = Some(console);
        }
        self.start_machine(&config)?;
        self.config = Some(config);
        Ok(())
    }

    fn open_console(&self, config: &SerialConfig) -> Result<(Console, ConsoleSubscriber), Error> {
        let events = self.queue.sender();
        let mode = console_mode(config);
        Console::open(&mode, move || events.send(MachineEvent::Quit)).map_err(Error::Console)
    }

    fn start_machine(&mut self, config: &VmConfig) -> Result<(), Error> {
        let machine =
            Machine::build(config, &self.host, self.console.as_ref()).map_err(Error::Build)?;
        machine.start().map_err(Error::Vcpu)?;
        self.machine = Some(machine);
        Ok(())
    }

    /// Serves events until the guest powers off or the process is told to end.
    ///
    /// # Errors
    /// When the guest or the VMM cannot go on.
    pub fn run(&mut self) -> Result<Outcome, Error> {
        loop {
            match self.subscribers.run() {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(Error::EventLoop(error)),
            }
            while let Some(event) = self.queue.next() {
                match self.handle(event) {
                    Ok(None) => {}
                    Ok(Some(outcome)) => {
                        self.end_machine();
                        return Ok(outcome);
                    }
                    Err(error) => {
                        self.end_machine();
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Ends the machine and gives its last output to whoever reads it.
    fn end_machine(&mut self) {
        self.machine = None;
        if let Some(console) = &self.console {
            console.detach();
            console.drain(DRAIN_LIMIT);
        }
    }

    fn handle(&mut self, event: MachineEvent) -> Result<Option<Outcome>, Error> {
        match event {
            MachineEvent::Reset => {
                tracing::info!("the guest resets");
                self.reboot()?;
            }
            MachineEvent::PowerOff => {
                tracing::info!("the guest powered off");
                return Ok(Some(Outcome::PowerOff));
            }
            MachineEvent::Quit => {
                tracing::info!("the user ended the VM");
                return Ok(Some(Outcome::Quit));
            }
            MachineEvent::Terminate(signal) => {
                tracing::info!(signal, "told to end");
                return Ok(Some(Outcome::Terminated(signal)));
            }
            MachineEvent::VcpuStopped { vcpu, reason } => {
                return Err(Error::VcpuStopped { vcpu, reason });
            }
            MachineEvent::ThreadFailed(source) => return Err(Error::Thread(source)),
        }
        Ok(None)
    }

    fn reboot(&mut self) -> Result<(), Error> {
        self.machine = None;
        // What the old machine's vCPUs still had to say concerns nobody any more.
        self.queue.clear();
        match self.config.take() {
            Some(config) => {
                self.start_machine(&config)?;
                self.config = Some(config);
                Ok(())
            }
            None => Ok(()),
        }
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
