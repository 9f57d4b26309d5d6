//! Unmasks a device's legacy interrupt whenever the guest has acknowledged it, for drivers that cannot do so themselves.
//!
//! Drivers of real functions take an eventfd for it (`VFIO_IRQ_SET_ACTION_UNMASK` with `DATA_EVENTFD`); drivers of mediated
//! devices, mtty among them, answer ENOTTY. A thread per such device then waits for the eventfd and unmasks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::borrow_eventfd;

struct Shared {
    /// What the thread waits for.
    resample: Mutex<Option<Arc<OwnedFd>>>,
    stop: AtomicBool,
    /// Signalled when one of the above changes.
    wake: EventFd,
}

impl Shared {
    fn resample(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.resample
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

/// The thread of one device. Dropping it ends the thread.
pub(super) struct IntxRelay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl IntxRelay {
    /// Starts the thread, which has nothing to wait for yet; `unmask` unmasks the interrupt.
    pub(super) fn start(unmask: impl Fn() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            resample: Mutex::new(None),
            stop: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("vfio-intx".to_owned())
                .spawn(move || {
                    if let Err(error) = relay(&shared, unmask) {
                        tracing::error!("a legacy interrupt is no longer unmasked: {error}");
                    }
                })?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Unmasks whenever `resample` is signalled from now on, or never.
    pub(super) fn watch(&self, resample: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let resample = resample.map(|fd| fd.try_clone_to_owned()).transpose()?;
        *self.shared.resample() = resample.map(Arc::new);
        self.shared.wake.write(1)
    }
}

impl Drop for IntxRelay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // The only failure is a counter at its maximum, and then the thread wakes up anyway.
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that unmasks a legacy interrupt panicked");
        }
    }
}

fn relay(shared: &Shared, unmask: impl Fn() -> io::Result<()>) -> io::Result<()> {
    while !shared.stop.load(Ordering::SeqCst) {
        let resample = shared.resample().clone();
        let mut fds = vec![PollFd::from_borrowed_fd(
            borrow_eventfd(&shared.wake),
            PollFlags::IN,
        )];
        fds.extend(
            resample
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            answer => answer?,
        };
        if !fds[0].revents().is_empty() {
            // Only resets the counter; what changed is looked at above.
            let _ = shared.wake.read();
        } else if let Some(resample) = &resample {
            match rustix::io::read(resample.as_fd(), &mut [0; size_of::<u64>()]) {
                Ok(_) => {
                    // A device that is gone has nothing to unmask; its other accesses say so.
                    if let Err(error) = unmask() {
                        tracing::debug!("cannot unmask a legacy interrupt: {error}");
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::IntxRelay;
    use crate::kvm::borrow_eventfd;

    const SOON: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_millis(50);

    #[test]
    fn each_acknowledgement_unmasks_until_it_is_told_to_stop() {
        let (unmasked, calls) = mpsc::channel();
        let relay =
            IntxRelay::start(move || unmasked.send(()).map_err(std::io::Error::other)).unwrap();
        let resample = EventFd::new(EFD_NONBLOCK).unwrap();
        relay.watch(Some(borrow_eventfd(&resample))).unwrap();
        for _ in 0..3 {
            resample.write(1).unwrap();
            calls.recv_timeout(SOON).expect("unmasked");
        }
        assert!(calls.recv_timeout(MOMENT).is_err(), "once each");
        relay.watch(None).unwrap();
        std::thread::sleep(MOMENT);
        resample.write(1).unwrap();
        assert!(calls.recv_timeout(MOMENT).is_err());
        drop(relay);
        assert_eq!(
            calls.try_recv(),
            Err(mpsc::TryRecvError::Disconnected),
            "the thread has ended"
        );
    }
}
