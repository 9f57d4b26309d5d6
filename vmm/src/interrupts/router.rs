//! Keeps KVM's routing table equal to the VM's table. One per machine, shared by its functions.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_pci::MsiMessage;
use thiserror::Error as ThisError;

use super::intx::Intx;
use super::msi::MsiVectors;
use super::routes::Routes;
use super::table::Table;

/// An interrupt that could not be routed.
#[derive(Debug, ThisError)]
pub enum Error {
    /// Every GSI is taken.
    #[error(
        "cannot route another interrupt: the VM's devices use all {in_use} routes that this host's KVM has; give it fewer devices"
    )]
    NoRouteLeft {
        /// GSIs that carry messages.
        in_use: usize,
    },
    /// The kernel refused the table.
    #[error("cannot set the interrupt routing table ({routes} routes)")]
    SetRouting {
        /// Entries of the table.
        routes: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An eventfd could not be connected.
    #[error("cannot connect an interrupt eventfd to GSI {gsi}")]
    Connect {
        /// The GSI.
        gsi: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An eventfd could not be disconnected.
    #[error("cannot disconnect an interrupt eventfd from GSI {gsi}")]
    Disconnect {
        /// The GSI.
        gsi: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No eventfd.
    #[error(
        "cannot create an interrupt eventfd; raise the limit of open files (ulimit -n) if it is reached"
    )]
    Eventfd(#[source] io::Error),
    /// A vector that the function does not have.
    #[error("cannot route vector {vector} of a function with {count} vectors")]
    NoSuchVector {
        /// The vector.
        vector: u16,
        /// Vectors of the function.
        count: usize,
    },
}

/// The interrupt routes of one VM.
pub struct InterruptRouter {
    routes: Arc<dyn Routes>,
    table: Mutex<Table>,
}

impl InterruptRouter {
    /// A router over `routes`, whose table holds at most `limit` entries (`KVM_CAP_IRQ_ROUTING`). KVM's own table after the
    /// creation of the irqchip is the same as that of a new router.
    #[must_use]
    pub fn new(routes: Arc<dyn Routes>, limit: u32) -> Arc<Self> {
        Arc::new(Self {
            routes,
            table: Mutex::new(Table::new(limit)),
        })
    }

    /// Vectors for one function, all masked. A vector takes a GSI when it is first unmasked.
    ///
    /// # Errors
    /// When no more eventfds can be made.
    pub fn msi_vectors(self: &Arc<Self>, count: u16) -> Result<MsiVectors, Error> {
        MsiVectors::new(Arc::clone(self), count)
    }

    /// A line to input `gsi` of the I/O APIC, not connected.
    ///
    /// # Errors
    /// When no more eventfds can be made.
    pub fn intx(&self, gsi: u32) -> Result<Intx, Error> {
        Intx::new(Arc::clone(&self.routes), gsi)
    }

    /// GSIs that vectors of functions hold.
    #[must_use]
    pub fn allocated_gsis(&self) -> usize {
        self.table().allocated()
    }

    /// The calls of KVM.
    pub(super) fn routes(&self) -> &dyn Routes {
        self.routes.as_ref()
    }

    /// Takes a GSI for a vector.
    pub(super) fn allocate(&self) -> Result<u32, Error> {
        let mut table = self.table();
        let gsi = table.allocate();
        gsi.ok_or_else(|| Error::NoRouteLeft {
            in_use: table.allocated(),
        })
    }

    /// Sets or removes the messages of several GSIs with one update of the kernel's table.
    ///
    /// On failure none of them has a route: no irqfd is on any of these GSIs now, so a route that the kernel still has reaches
    /// nobody, and the next update takes it away.
    pub(super) fn update(&self, changes: &[(u32, Option<MsiMessage>)]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut table = self.table();
        for &(gsi, message) in changes {
            table.set(gsi, message);
        }
        self.push(&table).inspect_err(|_| {
            for &(gsi, _) in changes {
                table.set(gsi, None);
            }
        })
    }

    /// Gives GSIs back. Their irqfds must be disconnected.
    pub(super) fn release(&self, gsis: impl IntoIterator<Item = u32>) -> Result<(), Error> {
        let mut table = self.table();
        let had_routes = gsis
            .into_iter()
            .fold(false, |any, gsi| table.release(gsi) | any);
        if had_routes {
            self.push(&table)
        } else {
            Ok(())
        }
    }

    /// Called with the table locked, so that the kernel sees tables in the order in which they came to be.
    fn push(&self, table: &Table) -> Result<(), Error> {
        let routes = table.routes();
        self.routes
            .set_routing(&routes)
            .map_err(|source| Error::SetRouting {
                routes: routes.len(),
                source,
            })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table
            .lock()
            .expect("no code panics while it holds this lock")
    }
}
