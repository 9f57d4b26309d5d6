//! Getting a vCPU thread out of `KVM_RUN` without a race.
//!
//! A thread outside of `KVM_RUN` would lose a plain signal and enter the guest anyway. So the kicker first writes
//! `kvm_run.immediate_exit`, which makes the next `KVM_RUN` return at once, and then sends the signal, which ends one that is
//! already running (`Documentation/virt/kvm/api.rst`, "immediate_exit"). The thread clears the byte before it looks at what is
//! asked of it, in that order.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::{Error, Vcpu};

/// The signal that interrupts `KVM_RUN`. Its handler does nothing.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the empty handler of the kick signal, once per process and before the first vCPU thread starts.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn install_kick_handler() -> Result<(), Error> {
    register_signal_handler(kick_signal(), ignore).map_err(|error| Error::Ioctl {
        what: "install the signal handler that interrupts vCPUs",
        source: io::Error::from_raw_os_error(error.errno()),
    })
}

/// The `immediate_exit` byte of one vCPU.
///
/// It points into the `kvm_run` page that the `Vcpu` keeps mapped, so its holder must keep the `Vcpu` alive. `vcpu_thread` does:
/// the `Vcpu` lives in the thread, or in the thread's result, until the thread is joined, and joining consumes the kicker.
#[derive(Debug)]
pub struct Kicker {
    immediate_exit: *mut u8,
}

// SAFETY: the byte is only ever accessed as an atomic, from any thread, while its mapping exists (see the type).
unsafe impl Send for Kicker {}

impl Kicker {
    pub(super) fn new(immediate_exit: *mut u8) -> Self {
        Self { immediate_exit }
    }

    /// Makes the thread leave `KVM_RUN`, or not enter it.
    pub fn kick(&self, thread: &JoinHandle<Vcpu>) {
        // SAFETY: the pointer is valid for the life of the `Vcpu`, which outlives this kicker; the kernel only reads the byte.
        let immediate_exit = unsafe { AtomicU8::from_ptr(self.immediate_exit) };
        immediate_exit.store(1, Ordering::SeqCst);
        // SAFETY: the handle has not been joined, so its pthread_t is valid; a thread that has ended is not signalled twice
        // because glibc answers ESRCH for it.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
    }
}
