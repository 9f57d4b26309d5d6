//! The legacy interrupt pin of one function, as a level-triggered irqfd on an input of the I/O APIC.
//!
//! The function's driver signals `trigger` and masks the pin on the host; KVM raises the line, and lowers it and signals `resample`
//! when the guest acknowledges the interrupt; the host then unmasks the pin. Several functions may share a GSI: KVM keeps the
//! line raised for each and signals all of their `resample`s (`struct kvm_kernel_irqfd_resampler`).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use dormouse_devices::vfio::host::IntxLine;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::router::Error;
use super::routes::Routes;
use crate::kvm::borrow_eventfd;

/// See the module.
pub struct Intx {
    routes: Arc<dyn Routes>,
    gsi: u32,
    trigger: EventFd,
    resample: EventFd,
    connected: Mutex<bool>,
}

impl Intx {
    pub(super) fn new(routes: Arc<dyn Routes>, gsi: u32) -> Result<Self, Error> {
        let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(Error::Eventfd);
        Ok(Self {
            routes,
            gsi,
            trigger: eventfd()?,
            resample: eventfd()?,
            connected: Mutex::new(false),
        })
    }

    fn set_connected(&self, connected: bool) -> Result<(), Error> {
        let mut now = self
            .connected
            .lock()
            .expect("no code panics while it holds this lock");
        if *now == connected {
            return Ok(());
        }
        let gsi = self.gsi;
        if connected {
            self.routes
                .register(gsi, &self.trigger, Some(&self.resample))
                .map_err(|source| Error::Connect { gsi, source })?;
        } else {
            self.routes
                .unregister(gsi, &self.trigger)
                .map_err(|source| Error::Disconnect { gsi, source })?;
        }
        *now = connected;
        Ok(())
    }
}

impl IntxLine for Intx {
    fn gsi(&self) -> u32 {
        self.gsi
    }

    fn connect(&self, connected: bool) -> io::Result<()> {
        self.set_connected(connected).map_err(io::Error::other)
    }

    fn trigger(&self) -> BorrowedFd<'_> {
        borrow_eventfd(&self.trigger)
    }

    fn resample(&self) -> BorrowedFd<'_> {
        borrow_eventfd(&self.resample)
    }

    fn raise(&self) {
        // The only failure is a counter at its maximum, and then the line is raised anyway.
        let _ = self.trigger.write(1);
    }
}

impl Drop for Intx {
    fn drop(&mut self) {
        if let Err(error) = self.set_connected(false) {
            tracing::warn!("the interrupt line of a removed device stays connected: {error}");
        }
    }
}
