//! Where a machine gets its passed-through functions from: VFIO devices of the running kernel, or fakes in tests.

use std::path::PathBuf;
use std::sync::Arc;

use dormouse_devices::vfio::host::HostFunction;
use dormouse_vfio_migration::{KernelDevice, MigrationIo};

use crate::vfio::{Error, HostDevices, Placement, Request};

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

/// Makes the source of one machine.
pub type MakeFunctionSource = dyn Fn(Placement) -> Box<dyn FunctionSource> + Send + Sync;

/// The kernel's VFIO devices.
#[must_use]
pub fn kernel_functions() -> Box<MakeFunctionSource> {
    Box::new(|placement| Box::new(HostDevices::new(placement)))
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
