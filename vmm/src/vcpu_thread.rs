//! One thread per vCPU: runs the guest, hands its port and MMIO accesses to the buses, and parks when asked to.
//!
//! A thread is *parked* while it waits for a command; only then does it run closures on its `Vcpu`, so whoever gets an answer from
//! one knows that the vCPU is out of `KVM_RUN` with no access half done. To park a running thread: raise `attention`, then kick.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use dormouse_devices::{Effect, Mmio, MmioBus, Pio, PioBus};
use rustix::thread::CpuSet;
use thiserror::Error;

use crate::events::{EventSender, MachineEvent};
use crate::kvm::{Exit, Kicker, StopReason, Vcpu};
use crate::seccomp;

/// Threads that could not be started or have died.
#[derive(Debug, Error)]
pub enum Error {
    /// No thread.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Spawn {
        /// Index of the vCPU.
        vcpu: u32,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The host does not let the thread run where the config wants it.
    #[error("cannot run vCPU {vcpu} on the host CPUs of cpus.affinity; does this host have them?")]
    Affinity {
        /// Index of the vCPU.
        vcpu: u32,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The filter of the thread could not be installed.
    #[error("cannot confine the thread of vCPU {vcpu}")]
    Seccomp {
        /// Index of the vCPU.
        vcpu: u32,
        /// What failed.
        #[source]
        source: seccomp::Error,
    },
    /// The thread ended although nobody asked it to.
    #[error("the thread of vCPU {vcpu} has ended unexpectedly; the VM cannot go on")]
    Gone {
        /// Index of the vCPU.
        vcpu: u32,
    },
}

/// The two address spaces that guest accesses outside of RAM go to.
#[derive(Debug, Default)]
pub struct Buses {
    /// Port I/O.
    pub pio: Arc<PioBus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<MmioBus>,
}

/// Applies what a PCI configuration write changes, on the thread that wrote and after every device lock is released.
pub trait LayoutEffects: Send + Sync {
    /// Brings the mappings of the function that `effect` names in line with its registers.
    fn apply(&self, effect: Effect);
}

/// How often the guest left `KVM_RUN` for the VMM. Accesses to mapped BARs never appear here.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port reads and writes.
    pub pio: AtomicU64,
    /// MMIO reads and writes.
    pub mmio: AtomicU64,
}

/// What all vCPU threads of a machine share.
#[derive(Clone)]
pub struct VcpuContext {
    /// Where accesses go.
    pub buses: Arc<Buses>,
    /// Who applies PCI layout changes.
    pub layout: Arc<dyn LayoutEffects>,
    /// Where the machine hears of resets, power-off and failures.
    pub events: EventSender,
    /// Exit counts.
    pub counters: Arc<ExitCounters>,
    /// The filter that the threads install.
    pub seccomp: seccomp::Mode,
}

type Call = Box<dyn FnOnce(&mut Vcpu) + Send>;

enum Command {
    Run,
    Call(Call),
}

/// The handle of one vCPU thread. Dropping it ends the thread and frees the vCPU.
pub struct VcpuThread {
    index: u32,
    thread: Option<JoinHandle<Vcpu>>,
    kicker: Kicker,
    attention: Arc<AtomicBool>,
    commands: Option<mpsc::Sender<Command>>,
    /// Where the thread says whether it is confined. Waited for with the first command and not before, so that many threads can
    /// start at once.
    confined: Mutex<Option<mpsc::Receiver<Result<(), Error>>>>,
}

impl VcpuThread {
    /// Starts the thread, parked, on `host_cpus` or wherever the host likes.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn spawn(
        mut vcpu: Vcpu,
        context: VcpuContext,
        host_cpus: Option<CpuSet>,
    ) -> Result<Self, Error> {
        let index = vcpu.index();
        let kicker = vcpu.kicker();
        let attention = Arc::new(AtomicBool::new(true));
        let (commands, received) = mpsc::channel();
        let (confining, confined) = mpsc::sync_channel(1);
        let seen = Arc::clone(&attention);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            // Closures save and restore vCPU state here; KVM's structures are a few KiB.
            .stack_size(1 << 20)
            .spawn(move || {
                let outcome = confine(index, host_cpus, context.seccomp);
                let is_confined = outcome.is_ok();
                // Nobody listens any more when another vCPU could not be started.
                let _ = confining.send(outcome);
                if is_confined {
                    serve_commands(&mut vcpu, &context, &received, &seen);
                }
                vcpu
            })
            .map_err(|source| Error::Spawn {
                vcpu: index,
                source,
            })?;
        Ok(Self {
            index,
            thread: Some(thread),
            kicker,
            attention,
            commands: Some(commands),
            confined: Mutex::new(Some(confined)),
        })
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When the thread could not be confined, or has died.
    pub fn run(&self) -> Result<(), Error> {
        tracing::trace!("vCPU {} runs", self.index);
        self.attention.store(false, Ordering::SeqCst);
        self.send(Command::Run)
    }

    /// Asks the thread to park, without waiting for it.
    pub fn request_park(&self) {
        self.attention.store(true, Ordering::SeqCst);
        if let Some(thread) = &self.thread {
            self.kicker.kick(thread);
        }
    }

    /// Runs `f` on the vCPU in its own thread as soon as it is parked. The answer comes through a channel, so that many vCPUs
    /// can work at once; the caller has asked the thread to park.
    ///
    /// # Errors
    /// When the thread could not be confined, or has died.
    pub fn begin_call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<mpsc::Receiver<R>, Error> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(Command::Call(Box::new(move |vcpu| {
            // Nobody listens any more when the caller has failed on another vCPU.
            let _ = answer.send(f(vcpu));
        })))?;
        Ok(answered)
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        let confined = {
            let mut confined = self.confined.lock().unwrap_or_else(PoisonError::into_inner);
            confined.take()
        };
        if let Some(confined) = confined {
            confined.recv().unwrap_or_else(|_| Err(self.gone()))?;
        }
        self.commands
            .as_ref()
            .and_then(|commands| commands.send(command).ok())
            .ok_or_else(|| self.gone())
    }

    /// The error for a thread that no longer answers.
    #[must_use]
    pub fn gone(&self) -> Error {
        Error::Gone { vcpu: self.index }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.commands = None;
        self.request_park();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Restricts the calling thread to its processors and system calls.
fn confine(vcpu: u32, host_cpus: Option<CpuSet>, seccomp_mode: seccomp::Mode) -> Result<(), Error> {
    if let Some(cpus) = host_cpus {
        rustix::thread::sched_setaffinity(None, &cpus).map_err(|source| Error::Affinity {
            vcpu,
            source: source.into(),
        })?;
    }
    seccomp::apply(seccomp_mode, seccomp::Role::Vcpu)
        .map_err(|source| Error::Seccomp { vcpu, source })
}

fn serve_commands(
    vcpu: &mut Vcpu,
    context: &VcpuContext,
    commands: &mpsc::Receiver<Command>,
    attention: &AtomicBool,
) {
    while let Ok(command) = commands.recv() {
        match command {
            Command::Call(call) => call(vcpu),
            Command::Run => {
                run_guest(vcpu, context, attention);
                tracing::trace!("vCPU {} is parked", vcpu.index());
            }
        }
    }
}

/// Runs the guest until somebody raises `attention` or the guest ends, and leaves no access half done: the last `KVM_RUN` is
/// one that returns before guest code runs, as the kernel asks for (`api.rst`, note at `KVM_EXIT_IO`).
fn run_guest(vcpu: &mut Vcpu, context: &VcpuContext, attention: &AtomicBool) {
    let mut parking = false;
    loop {
        vcpu.clear_kick();
        parking |= attention.load(Ordering::SeqCst);
        if parking {
            vcpu.return_before_guest_code();
        }
        let effect = match vcpu.run() {
            Exit::Interrupted if parking => return,
            Exit::Interrupted | Exit::Again => Effect::None,
            Exit::PortRead(port, bytes, data) => {
                context.counters.pio.fetch_add(1, Ordering::Relaxed);
                for piece in data.chunks_mut(bytes) {
                    context.buses.pio.read(Pio(port), piece);
                }
                Effect::None
            }
            Exit::PortWrite(port, bytes, data) => {
                context.counters.pio.fetch_add(1, Ordering::Relaxed);
                write_port(context, port, bytes, data)
            }
            Exit::MmioRead(address, data) => {
                context.counters.mmio.fetch_add(1, Ordering::Relaxed);
                context.buses.mmio.read(Mmio(address), data);
                Effect::None
            }
            Exit::MmioWrite(address, data) => {
                context.counters.mmio.fetch_add(1, Ordering::Relaxed);
                context
                    .buses
                    .mmio
                    .write(Mmio(address), data)
                    .unwrap_or(Effect::None)
            }
            Exit::Stopped(reason) => {
                report_stop(vcpu, reason, context);
                return;
            }
        };
        match effect {
            Effect::None => {}
            Effect::Reset => {
                context.events.send(MachineEvent::Reset);
                parking = true;
            }
            Effect::Shutdown => {
                context.events.send(MachineEvent::PowerOff);
                parking = true;
            }
            layout => context.layout.apply(layout),
        }
    }
}

/// Each piece of `data` is one access. What one of them changes is in force for the next; nothing follows the end of the machine.
fn write_port(context: &VcpuContext, port: u16, bytes: usize, data: &[u8]) -> Effect {
    for piece in data.chunks(bytes) {
        let effect = context.buses.pio.write(Pio(port), piece);
        match effect.unwrap_or(Effect::None) {
            Effect::None => {}
            end @ (Effect::Reset | Effect::Shutdown) => return end,
            layout => context.layout.apply(layout),
        }
    }
    Effect::None
}

fn report_stop(vcpu: &Vcpu, reason: StopReason, context: &VcpuContext) {
    vcpu.log_registers();
    context.events.send(MachineEvent::VcpuStopped {
        vcpu: vcpu.index(),
        reason,
    });
}
