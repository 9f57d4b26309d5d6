//! The MSI or MSI-X vectors of one function: an eventfd each, connected to the guest while the vector is unmasked.
//!
//! An irqfd is only ever connected to a GSI whose route is in place, and a route only changes while no irqfd is on it: otherwise
//! an interrupt could arrive with the message of before, or with none. While a vector is detached its eventfd counts, and KVM
//! raises what was counted when the irqfd is connected again, so no interrupt is lost by masking.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_devices::vfio::host::MsiSink;
use dormouse_pci::{MsiMessage, VectorChange, VectorState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::router::{Error, InterruptRouter};
use crate::kvm::borrow_eventfd;

/// The bits of an address that say whether a write is an interrupt message (Intel SDM vol. 3, "Message Address Register
/// Format"). The high half must be zero too: vCPUs have 8-bit APIC ids (`layout::MAX_VCPUS`), so the guest is not offered the
/// formats with 32-bit destinations.
const MESSAGE_ADDRESS_MASK: u64 = 0xffff_ffff_fff0_0000;
/// What those bits hold in an interrupt message.
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// How one vector stands with KVM.
#[derive(Debug, Default)]
struct Vector {
    /// Its GSI, from the first unmasking on.
    gsi: Option<u32>,
    /// The message that its irqfd raises; none while it is detached.
    attached: Option<MsiMessage>,
}

/// See the module.
pub struct MsiVectors {
    router: Arc<InterruptRouter>,
    eventfds: Vec<EventFd>,
    vectors: Mutex<Vec<Vector>>,
}

impl MsiVectors {
    pub(super) fn new(router: Arc<InterruptRouter>, count: u16) -> Result<Self, Error> {
        let eventfds = (0..count)
            .map(|_| EventFd::new(EFD_NONBLOCK).map_err(Error::Eventfd))
            .collect::<Result<Vec<_>, _>>()?;
        let vectors = eventfds.iter().map(|_| Vector::default()).collect();
        Ok(Self {
            router,
            eventfds,
            vectors: Mutex::new(vectors),
        })
    }

    /// Brings vectors into the states that they have after `changes`. When it fails, the vectors that could not be routed are
    /// detached, so their interrupts stay pending; the others are as asked.
    fn route(&self, changes: &[VectorChange]) -> Result<(), Error> {
        let mut vectors = self.lock();
        let mut wanted = BTreeMap::new();
        for change in changes {
            if usize::from(change.vector) >= vectors.len() {
                return Err(Error::NoSuchVector {
                    vector: change.vector,
                    count: vectors.len(),
                });
            }
            wanted.insert(usize::from(change.vector), deliverable(change.after));
        }
        wanted.retain(|&index, message| vectors[index].attached != *message);

        for &index in wanted.keys() {
            self.detach(index, &mut vectors[index])?;
        }
        let mut outcome = Ok(());
        let mut updates = Vec::with_capacity(wanted.len());
        wanted.retain(|&index, message| {
            let gsi = match (vectors[index].gsi, *message) {
                (Some(gsi), _) => gsi,
                (None, None) => return false,
                (None, Some(_)) => match self.router.allocate() {
                    Ok(gsi) => *vectors[index].gsi.insert(gsi),
                    Err(error) => {
                        outcome = Err(error);
                        return false;
                    }
                },
            };
            updates.push((gsi, *message));
            message.is_some()
        });
        self.router.update(&updates)?;
        for (index, message) in wanted {
            if let Err(error) = self.attach(index, &mut vectors[index], message) {
                outcome = Err(error);
            }
        }
        outcome
    }

    fn detach(&self, index: usize, vector: &mut Vector) -> Result<(), Error> {
        if let (Some(gsi), Some(_)) = (vector.gsi, vector.attached) {
            self.router
                .routes()
                .unregister(gsi, &self.eventfds[index])
                .map_err(|source| Error::Disconnect { gsi, source })?;
            vector.attached = None;
        }
        Ok(())
    }

    fn attach(
        &self,
        index: usize,
        vector: &mut Vector,
        message: Option<MsiMessage>,
    ) -> Result<(), Error> {
        let Some(gsi) = vector.gsi else { return Ok(()) };
        match self
            .router
            .routes()
            .register(gsi, &self.eventfds[index], None)
        {
            Ok(()) => {
                vector.attached = message;
                Ok(())
            }
            Err(source) => {
                self.router.update(&[(gsi, None)])?;
                Err(Error::Connect { gsi, source })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vector>> {
        self.vectors
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

/// The message to deliver in a state: none for a masked vector, and none for an address outside of the interrupt window, where a
/// real device would write to memory.
fn deliverable(state: VectorState) -> Option<MsiMessage> {
    match state {
        VectorState::Unmasked(message)
            if message.address & MESSAGE_ADDRESS_MASK == MESSAGE_ADDRESS =>
        {
            Some(message)
        }
        VectorState::Unmasked(_) | VectorState::Masked => None,
    }
}

impl MsiSink for MsiVectors {
    fn len(&self) -> usize {
        self.eventfds.len()
    }

    fn apply(&self, changes: &[VectorChange]) -> io::Result<()> {
        self.route(changes).map_err(io::Error::other)
    }

    fn eventfd(&self, vector: u16) -> BorrowedFd<'_> {
        borrow_eventfd(&self.eventfds[usize::from(vector)])
    }

    fn take_pending(&self, vector: u16) -> bool {
        let vectors = self.lock();
        match (
            vectors.get(usize::from(vector)),
            self.eventfds.get(usize::from(vector)),
        ) {
            // The count of an attached eventfd belongs to KVM.
            (Some(Vector { attached: None, .. }), Some(eventfd)) => eventfd.read().is_ok(),
            _ => false,
        }
    }

    fn signal(&self, vector: u16) {
        if let Some(eventfd) = self.eventfds.get(usize::from(vector)) {
            // The only failure is a counter at its maximum, and then an interrupt is pending anyway.
            let _ = eventfd.write(1);
        }
    }

    fn routed(&self, vector: u16) -> Option<MsiMessage> {
        self.lock()
            .get(usize::from(vector))
            .and_then(|vector| vector.attached)
    }
}

impl Drop for MsiVectors {
    fn drop(&mut self) {
        let mut vectors = self.lock();
        let mut free = Vec::new();
        for (index, vector) in vectors.iter_mut().enumerate() {
            match self.detach(index, vector) {
                Ok(()) => free.extend(vector.gsi),
                // A GSI that may still have an irqfd on it must not be handed out again.
                Err(error) => {
                    tracing::warn!("an interrupt route of a removed device stays behind: {error}")
                }
            }
        }
        if let Err(error) = self.router.release(free) {
            tracing::warn!("routes of a removed device stay in the kernel's table: {error}");
        }
    }
}
