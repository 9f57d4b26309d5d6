//! Passes a device's legacy interrupt on to the guest, for drivers that do not keep a level.
//!
//! Drivers of real functions hold INTx masked from its signal to the guest's acknowledgement, take an eventfd for the latter
//! (`VFIO_IRQ_SET_ACTION_UNMASK` with `DATA_EVENTFD`), and look at the pin when they unmask. Drivers of mediated devices, mtty
//! among them, answer ENOTTY, and what happens while they are masked is lost. A thread per such device then takes its signals,
//! unmasks it at once, so that nothing is lost, and makes a level of them: a signal that comes before the guest has
//! acknowledged the last one raises the line once more afterwards, because the guest may have looked before it came.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::borrow_eventfd;

/// The guest's interrupt line.
struct Line {
    /// Raises it.
    trigger: OwnedFd,
    /// Signalled when the guest has acknowledged it, which lowers it.
    resample: OwnedFd,
}

struct Shared {
    line: Mutex<Option<Arc<Line>>>,
    /// Signalled by the device.
    device: EventFd,
    stop: AtomicBool,
    /// Signalled when the line or `stop` changes.
    wake: EventFd,
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Option<Arc<Line>>> {
        self.line
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
    /// Starts the thread, which has no line yet; `unmask` unmasks the device's interrupt.
    pub(super) fn start(unmask: impl Fn() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            line: Mutex::new(None),
            device: EventFd::new(EFD_NONBLOCK)?,
            stop: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("vfio-intx".to_owned())
                .spawn(move || {
                    if let Err(error) = relay(&shared, unmask) {
                        tracing::error!("a legacy interrupt no longer reaches the guest: {error}");
                    }
                })?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What the device has to signal.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        borrow_eventfd(&self.shared.device)
    }

    /// From now on the device's interrupt raises the line `trigger`, whose acknowledgements `resample` tells.
    pub(super) fn connect(
        &self,
        trigger: BorrowedFd<'_>,
        resample: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let line = Line {
            trigger: trigger.try_clone_to_owned()?,
            resample: resample.try_clone_to_owned()?,
        };
        self.set(Some(line))
    }

    /// From now on the device's interrupt goes nowhere.
    pub(super) fn disconnect(&self) -> io::Result<()> {
        self.set(None)
    }

    fn set(&self, line: Option<Line>) -> io::Result<()> {
        *self.shared.line() = line.map(Arc::new);
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
            tracing::error!("the thread that passes a legacy interrupt on panicked");
        }
    }
}

fn relay(shared: &Shared, unmask: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let unmask = || {
        // A device that is gone has nothing to unmask; its other accesses say so.
        if let Err(error) = unmask() {
            tracing::debug!("cannot unmask a legacy interrupt: {error}");
        }
    };
    // The line may be raised, by us or by a resume, and the guest has not acknowledged that yet.
    let mut outstanding = true;
    // The device has signalled since then.
    let mut again = false;
    while !shared.stop.load(Ordering::SeqCst) {
        let line = shared.line().clone();
        let mut sources = vec![borrow_eventfd(&shared.wake), borrow_eventfd(&shared.device)];
        sources.extend(line.iter().map(|line| line.resample.as_fd()));
        let ready = wait(&sources)?;
        if ready[0] {
            take(sources[0])?;
            (outstanding, again) = (true, false);
            continue;
        }
        let Some(line) = &line else {
            take(sources[1])?;
            continue;
        };
        if ready[1] {
            take(sources[1])?;
            // First, so that whatever comes after the guest has looked is signalled.
            unmask();
            again = outstanding;
            outstanding = true;
            raise(line)?;
        }
        if ready[2] {
            take(sources[2])?;
            // The driver may have masked before its signals came here.
            unmask();
            outstanding = again;
            if std::mem::take(&mut again) {
                raise(line)?;
            }
        }
    }
    Ok(())
}

/// Waits until one of `sources` is signalled, and tells which are.
pub(super) fn wait(sources: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    let mut fds: Vec<_> = sources
        .iter()
        .map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN))
        .collect();
    while let Err(error) = poll(&mut fds, None) {
        if error != Errno::INTR {
            return Err(error.into());
        }
    }
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// Resets the counter of an eventfd.
pub(super) fn take(eventfd: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::io::read(eventfd, &mut [0; size_of::<u64>()]) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn raise(line: &Line) -> io::Result<()> {
    match rustix::io::write(&line.trigger, &1_u64.to_ne_bytes()) {
        // A counter at its maximum says the same.
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::mpsc::{self, Receiver};
    use std::time::{Duration, Instant};

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::{IntxRelay, wait};
    use crate::kvm::borrow_eventfd;

    const SOON: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_millis(50);

    /// A relay with both of its sides.
    struct Bench {
        relay: IntxRelay,
        unmasked: Receiver<()>,
        trigger: EventFd,
        resample: EventFd,
    }

    impl Bench {
        fn new() -> Self {
            let (sender, unmasked) = mpsc::channel();
            let relay =
                IntxRelay::start(move || sender.send(()).map_err(std::io::Error::other)).unwrap();
            let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
            let bench = Self {
                relay,
                unmasked,
                trigger: eventfd(),
                resample: eventfd(),
            };
            bench.connect();
            bench
        }

        fn connect(&self) {
            let (trigger, resample) = (&self.trigger, &self.resample);
            self.relay
                .connect(borrow_eventfd(trigger), borrow_eventfd(resample))
                .unwrap();
        }

        /// The device signals, and the relay has seen it.
        fn signal(&self) {
            rustix::io::write(self.relay.device(), &1_u64.to_ne_bytes()).unwrap();
            self.unmasked.recv_timeout(SOON).expect("unmasked at once");
        }

        /// The guest acknowledges, and the relay has seen it.
        fn acknowledge(&self) {
            self.resample.write(1).unwrap();
            self.unmasked.recv_timeout(SOON).expect("unmasked");
        }

        fn is_raised(&self) -> bool {
            let deadline = Instant::now() + MOMENT;
            while Instant::now() < deadline {
                if self.trigger.read().is_ok() {
                    return true;
                }
                std::thread::sleep(MOMENT / 10);
            }
            false
        }

        /// Past the first acknowledgement, before which the relay knows nothing of the line.
        fn settle(&self) {
            self.signal();
            assert!(self.is_raised());
            self.acknowledge();
            assert!(self.is_raised(), "the line's state was unknown");
            self.acknowledge();
            assert!(!self.is_raised());
        }
    }

    #[test]
    fn each_signal_raises_the_line_once() {
        let bench = Bench::new();
        bench.settle();
        for _ in 0..3 {
            bench.signal();
            assert!(bench.is_raised());
            bench.acknowledge();
            assert!(!bench.is_raised(), "nothing was left to tell");
        }
    }

    #[test]
    fn a_signal_before_the_acknowledgement_is_not_lost() {
        let bench = Bench::new();
        bench.settle();
        bench.signal();
        assert!(bench.is_raised());
        // KVM takes this for the same level and lowers it at the acknowledgement.
        bench.signal();
        bench.is_raised();
        bench.acknowledge();
        assert!(bench.is_raised(), "the guest looks once more");
        bench.acknowledge();
        assert!(!bench.is_raised());
    }

    #[test]
    fn a_disconnected_line_stays_low() {
        let bench = Bench::new();
        bench.settle();
        bench.relay.disconnect().unwrap();
        std::thread::sleep(MOMENT);
        rustix::io::write(bench.relay.device(), &1_u64.to_ne_bytes()).unwrap();
        assert!(!bench.is_raised());
        bench.connect();
        std::thread::sleep(MOMENT);
        bench.settle();
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        let Bench {
            relay, unmasked, ..
        } = Bench::new();
        drop(relay);
        assert_eq!(
            unmasked.try_recv(),
            Err(mpsc::TryRecvError::Disconnected),
            "the thread has ended"
        );
    }

    #[test]
    fn only_what_is_signalled_is_reported() {
        let eventfds = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        eventfds[1].write(1).unwrap();
        let sources: Vec<BorrowedFd<'_>> = eventfds.iter().map(borrow_eventfd).collect();
        assert_eq!(wait(&sources).unwrap(), [false, true]);
    }
}
