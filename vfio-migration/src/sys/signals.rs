//! Holds signals off the calling thread while a state change is under way.
//!
//! mlx5 waits interruptibly for a SAVE that is in flight, so that a signal makes SET fail with
//! EINTR. Used around every SET and every write to a loading device. Signals that report a fault
//! of the thread itself stay open, or the kernel would kill the process without its handlers.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;

/// Signals that the thread raises itself by a fault or by seccomp.
const FAULTS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// Blocks signals for this thread; the former mask returns when it is dropped.
pub(crate) struct BlockedSignals {
    former: libc::sigset_t,
    /// The mask belongs to the thread that made it.
    _not_send: PhantomData<*const ()>,
}

impl BlockedSignals {
    pub(crate) fn new() -> Self {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `mask` is writable; sigfillset initialises all of it.
        unsafe { libc::sigfillset(mask.as_mut_ptr()) };
        // SAFETY: initialised above.
        let mut mask = unsafe { mask.assume_init() };
        for signal in FAULTS {
            // SAFETY: `mask` is an initialised set and `signal` a valid number.
            unsafe { libc::sigdelset(&raw mut mask, signal) };
        }
        Self {
            former: swap_mask(&mask),
            _not_send: PhantomData,
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        swap_mask(&self.former);
    }
}

/// Sets the thread's mask and returns the one before. It fails for no valid request.
fn swap_mask(mask: &libc::sigset_t) -> libc::sigset_t {
    let mut former = *mask;
    // SAFETY: both point to initialised sets that live through the call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, ptr::from_ref(mask), &raw mut former) };
    former
}

/// Whether this thread holds off `signal`.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn is_blocked(signal: libc::c_int) -> bool {
    let mut now = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe { libc::sigemptyset(now.as_mut_ptr()) };
    // SAFETY: a null new mask changes nothing; the present one is stored in `now`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), now.as_mut_ptr()) };
    // SAFETY: `now` was initialised twice.
    (unsafe { libc::sigismember(now.as_ptr(), signal) }) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_held_off_and_come_back() {
        assert!(!is_blocked(libc::SIGTERM));
        let outer = BlockedSignals::new();
        {
            let _inner = BlockedSignals::new();
            assert!(is_blocked(libc::SIGTERM));
        }
        assert!(is_blocked(libc::SIGTERM) && is_blocked(libc::SIGUSR1));
        assert!(is_blocked(libc::SIGRTMIN()));
        drop(outer);
        assert!(!is_blocked(libc::SIGTERM));
    }

    #[test]
    fn faults_keep_their_handlers() {
        let _blocked = BlockedSignals::new();
        for signal in FAULTS {
            assert!(!is_blocked(signal), "signal {signal}");
        }
    }
}
