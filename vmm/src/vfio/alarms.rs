//! What a device's driver tells by itself: that the host wants the device back, and that it had an error.
//!
//! `VFIO_PCI_REQ_IRQ_INDEX` is signalled again every few seconds while an unbind or a removal waits for this process, and
//! `VFIO_PCI_ERR_IRQ_INDEX` for each uncorrectable PCIe error. One thread for the devices that are opened together writes that to
//! the log, and has `vm.info` show it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dormouse_devices::vfio::host::{Alarms, IrqIndex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::intx_relay::{take, wait};
use crate::events::{EventSender, MachineEvent};
use crate::kvm::borrow_eventfd;

/// The kernel repeats itself, the log does not need to.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// The alarms of one device.
pub(super) struct DeviceAlarms {
    name: String,
    /// Whoever shows the state of devices.
    events: EventSender,
    requested: Alarm,
    failed: Alarm,
}

/// One kind of alarm.
struct Alarm {
    eventfd: EventFd,
    raised: AtomicBool,
    told: Mutex<Option<Instant>>,
}

impl Alarm {
    fn new() -> io::Result<Self> {
        Ok(Self {
            eventfd: EventFd::new(EFD_NONBLOCK)?,
            raised: AtomicBool::new(false),
            told: Mutex::new(None),
        })
    }

    /// Says whether an alarm of now is to be told.
    fn is_due(&self, now: Instant) -> bool {
        let mut told = self
            .told
            .lock()
            .expect("no code panics while it holds this lock");
        let due = told.is_none_or(|told| now.duration_since(told) >= REPEAT_AFTER);
        if due {
            *told = Some(now);
        }
        due
    }
}

impl DeviceAlarms {
    fn new(name: String, events: EventSender) -> io::Result<Self> {
        Ok(Self {
            name,
            events,
            requested: Alarm::new()?,
            failed: Alarm::new()?,
        })
    }

    /// What is to be armed, and with what.
    pub(super) fn eventfds(&self) -> [(IrqIndex, BorrowedFd<'_>); 2] {
        [
            (IrqIndex::Request, borrow_eventfd(&self.requested.eventfd)),
            (IrqIndex::Error, borrow_eventfd(&self.failed.eventfd)),
        ]
    }

    pub(super) fn state(&self) -> Alarms {
        Alarms {
            wanted_back: self.requested.raised.load(Ordering::Relaxed),
            failed: self.failed.raised.load(Ordering::Relaxed),
        }
    }

    /// A reset gets a device over its errors.
    pub(super) fn was_reset(&self) {
        self.set(&self.failed, false);
    }

    fn set(&self, alarm: &Alarm, raised: bool) {
        // Not for each repetition: the queue has no limit.
        if alarm.raised.swap(raised, Ordering::Relaxed) != raised {
            self.events.send(MachineEvent::DeviceAlarm);
        }
    }

    fn on_request(&self) {
        self.set(&self.requested, true);
        if self.requested.is_due(Instant::now()) {
            tracing::warn!(
                "{}: the host wants the device back, and whoever removes it or unbinds its driver waits for this VM: shut the VM down, or remove the device from it",
                self.name
            );
        }
    }

    fn on_error(&self) {
        self.set(&self.failed, true);
        if self.failed.is_due(Instant::now()) {
            tracing::error!(
                "{}: the device had an uncorrectable PCIe error and may work no more until it is reset; see the host's kernel log",
                self.name
            );
        }
    }
}

/// What the thread looks at.
struct Shared {
    devices: Mutex<Vec<Arc<DeviceAlarms>>>,
    stop: AtomicBool,
    /// Signalled when one of the others changes.
    wake: EventFd,
}

impl Shared {
    fn devices(&self) -> MutexGuard<'_, Vec<Arc<DeviceAlarms>>> {
        self.devices
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

/// The thread. Dropping it ends the thread.
pub(super) struct Watch {
    shared: Arc<Shared>,
    events: EventSender,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts the thread, which has no devices yet. `events` gets a [`MachineEvent::DeviceAlarm`] for each change of a device's state.
    pub(super) fn start(events: EventSender) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            devices: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("vfio-alarms".to_owned())
                .spawn(move || {
                    if let Err(error) = watch(&shared) {
                        tracing::error!("devices cannot tell their errors any more: {error}");
                    }
                })?
        };
        Ok(Self {
            shared,
            events,
            thread: Some(thread),
        })
    }

    /// Looks at one more device, of this name in the log.
    pub(super) fn listen_to(&self, name: String) -> io::Result<Arc<DeviceAlarms>> {
        let device = Arc::new(DeviceAlarms::new(name, self.events.clone())?);
        self.shared.devices().push(Arc::clone(&device));
        self.shared.wake.write(1)?;
        Ok(device)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // The only failure is a counter at its maximum, and then the thread wakes up anyway.
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that listens to devices panicked");
        }
    }
}

fn watch(shared: &Shared) -> io::Result<()> {
    while !shared.stop.load(Ordering::SeqCst) {
        let devices = shared.devices().clone();
        let mut sources = vec![borrow_eventfd(&shared.wake)];
        for device in &devices {
            sources.extend(device.eventfds().map(|(_, eventfd)| eventfd));
        }
        let ready = wait(&sources)?;
        for (source, _) in sources.iter().zip(&ready).filter(|(_, ready)| **ready) {
            take(*source)?;
        }
        for (device, ready) in devices.iter().zip(ready[1..].chunks_exact(2)) {
            if ready[0] {
                device.on_request();
            }
            if ready[1] {
                device.on_error();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use dormouse_devices::vfio::host::Alarms;

    use super::{DeviceAlarms, REPEAT_AFTER, Watch};
    use crate::events::EventQueue;

    fn await_state(device: &DeviceAlarms, expected: Alarms) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while device.state() != expected {
            assert!(Instant::now() < deadline, "{:?}", device.state());
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn alarms_of_each_device_are_noticed() {
        let events = EventQueue::new().unwrap();
        let watch = Watch::start(events.sender()).unwrap();
        let [one, two] = ["one", "two"].map(|name| watch.listen_to(name.to_owned()).unwrap());
        let quiet = Alarms::default();
        two.failed.eventfd.write(1).unwrap();
        let failed = Alarms {
            failed: true,
            ..quiet
        };
        await_state(&two, failed);
        one.requested.eventfd.write(1).unwrap();
        let wanted_back = Alarms {
            wanted_back: true,
            ..quiet
        };
        await_state(&one, wanted_back);
        two.was_reset();
        assert_eq!((one.state(), two.state()), (wanted_back, quiet));
        one.requested.eventfd.write(1).unwrap();
        two.was_reset();
        drop(watch);
        let told = std::iter::from_fn(|| events.next());
        assert_eq!(told.count(), 3, "once for each change");
    }

    #[test]
    fn an_alarm_that_repeats_is_told_now_and_then() {
        let events = EventQueue::new().unwrap();
        let device = DeviceAlarms::new("one".to_owned(), events.sender()).unwrap();
        let start = Instant::now();
        assert!(device.requested.is_due(start));
        assert!(!device.requested.is_due(start + REPEAT_AFTER / 2));
        assert!(device.requested.is_due(start + REPEAT_AFTER));
        assert!(device.failed.is_due(start), "each kind by itself");
    }
}
