//! Where a machine gets its passed-through functions from: VFIO devices of the running kernel, or fakes in tests.

use std::path::PathBuf;
use std::sync::Arc;

use dormouse_devices::vfio::host::HostFunction;
use dormouse_vfio_migration::{KernelDevice, MigrationIo};

use crate::vfio::{Error, HostDevices, Identity, Placement, Request, check_all};

/// A function that is open on the host, reachable by guest RAM's DMA mappings and not yet part of a machine.
#[derive(Clone)]
pub struct OpenFunction {
    /// Its sysfs directory with links resolved.
    pub path: PathBuf,
    /// The host's driver of the device.
    pub driver: Option<String>,
    /// Its registers, interrupts and BARs.
    pub host: Arc<dyn HostFunction>,
    /// Its migration protocol. Whether the device has one is asked with [`MigrationIo::probe`].
    pub migration: Arc<dyn MigrationIo>,
}

/// The functions of one machine.
pub trait FunctionSource: Send {
    /// Opens functions, in the order of `requests`. They close when the last reference to them goes.
    ///
    /// # Errors
    /// The first one that cannot be passed through; none of them stays open then.
    fn open_functions(&self, requests: &[Request<'_>]) -> Result<Vec<OpenFunction>, Error>;
}

/// Where the functions of all machines are.
pub trait FunctionHost: Send + Sync {
    /// The source of one machine.
    fn source(&self, placement: Placement) -> Box<dyn FunctionSource>;

    /// Refuses what can be seen not to be there or not to be free without opening anything, and tells the ids of PCI functions.
    ///
    /// # Errors
    /// The first function that cannot be passed through.
    fn survey(&self, requests: &[Request<'_>]) -> Result<Vec<Option<Identity>>, Error>;
}

/// The kernel's VFIO devices.
pub struct KernelFunctions;

impl FunctionHost for KernelFunctions {
    fn source(&self, placement: Placement) -> Box<dyn FunctionSource> {
        Box::new(HostDevices::new(placement))
    }

    fn survey(&self, requests: &[Request<'_>]) -> Result<Vec<Option<Identity>>, Error> {
        let devices = check_all(requests, &[])?;
        Ok(devices.iter().map(|device| device.identity).collect())
    }
}

impl FunctionSource for HostDevices {
    fn open_functions(&self, requests: &[Request<'_>]) -> Result<Vec<OpenFunction>, Error> {
        let opened = self.open(requests)?;
        let functions = opened.into_iter().map(|function| OpenFunction {
            path: function.host().path.clone(),
            driver: function.host().driver.clone(),
            migration: Arc::new(KernelDevice::new(Arc::clone(function.device()))),
            host: function,
        });
        Ok(functions.collect())
    }
}
