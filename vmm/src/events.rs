//! What other threads tell the machine's main loop: a queue with an eventfd that wakes it.

use std::sync::Arc;
use std::sync::mpsc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::StopReason;

/// Something that the main loop must act on.
#[derive(Debug)]
pub enum MachineEvent {
    /// The guest asked for a reset.
    Reset,
    /// The guest powered itself off.
    PowerOff,
    /// A vCPU cannot go on.
    VcpuStopped {
        /// Index of the vCPU.
        vcpu: u32,
        /// Why.
        reason: StopReason,
    },
    /// A passed-through device has something to tell that `vm.info` shows.
    DeviceAlarm,
    /// The user typed the escape sequence that ends the VM.
    Quit,
    /// A signal that ends the process.
    Terminate(i32),
}

/// The sending half; cheap to clone.
#[derive(Debug, Clone)]
pub struct EventSender {
    queue: mpsc::Sender<MachineEvent>,
    wake: Arc<EventFd>,
}

impl EventSender {
    /// Queues an event and wakes the main loop.
    pub fn send(&self, event: MachineEvent) {
        // Both only fail when the main loop is gone, and then nobody can act on it.
        let _ = self.queue.send(event);
        let _ = self.wake.write(1);
    }
}

/// The receiving half, owned by the main loop.
#[derive(Debug)]
pub struct EventQueue {
    queue: mpsc::Receiver<MachineEvent>,
    sender: EventSender,
}

impl EventQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let (sender, queue) = mpsc::channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self {
            queue,
            sender: EventSender {
                queue: sender,
                wake,
            },
        })
    }

    /// A sending half.
    #[must_use]
    pub fn sender(&self) -> EventSender {
        self.sender.clone()
    }

    /// The eventfd that becomes readable when something is queued.
    #[must_use]
    pub fn wake(&self) -> Arc<EventFd> {
        Arc::clone(&self.sender.wake)
    }

    /// The next queued event.
    pub fn next(&self) -> Option<MachineEvent> {
        self.queue.try_recv().ok()
    }

    /// Drops what a machine that no longer exists had queued; what concerns the process stays.
    pub fn forget_machine(&self) {
        let kept: Vec<_> = std::iter::from_fn(|| self.next())
            .filter(|event| matches!(event, MachineEvent::Terminate(_) | MachineEvent::Quit))
            .collect();
        for event in kept {
            self.sender.send(event);
        }
    }
}
