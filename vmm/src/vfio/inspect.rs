//! What this host offers for passthrough, read without changing anything: the facts behind `dormouse doctor`.
//!
//! `host` reads sysfs and looks for device nodes. `probe` opens one device that is bound to a VFIO driver and asks it; opening
//! resets some devices, so it is done only for devices that are free to be given to a VM.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use dormouse_devices::vfio::host::IrqIndex;
use dormouse_vfio_migration::{KernelDevice, MigFlags, MigrationIo};
use rustix::thread::CapabilitySet;
use serde::Serialize;

use super::dma::memlock_limit;
use super::error::{BIND, Error};
use super::group::open_error;
use super::ioctl;
use super::iommu::{Iommu, Way};
use super::sysfs::{self, Bus, HostDevice, Roots};

/// `PROC_USER_INIT_INO` of `include/linux/proc_ns.h`.
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// The host as far as passthrough is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Number of IOMMU groups with PCI functions; 0 where the IOMMU is off. Groups that the kernel makes up do not count.
    pub iommu_groups: usize,
    /// The ACPI table by which the firmware tells of an IOMMU: `DMAR` (Intel) or `IVRS` (AMD).
    pub iommu_table: Option<&'static str>,
    /// Devices can be opened through groups and a container.
    pub groups: bool,
    /// Devices can be opened through iommufd.
    pub iommufd: bool,
    /// Bytes that this process may lock, none where that is not limited. All RAM of a VM with devices is locked.
    pub memlock_limit: Option<u64>,
    /// The limit is not applied to this process, since it has `CAP_IPC_LOCK`.
    pub memlock_exempt: bool,
    /// PCI functions, sorted by address.
    pub functions: Vec<Device>,
    /// Mediated devices, sorted by UUID.
    pub mdevs: Vec<Device>,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// What sysfs says.
    #[serde(flatten)]
    pub host: HostDevice,
    /// Its node for iommufd exists.
    pub has_cdev: bool,
    /// Address of the physical function that a virtual function belongs to.
    pub physical_function: Option<String>,
    /// What keeps it from being passed through, with the remedy; none where nothing does.
    pub obstacle: Option<String>,
}

/// What an opened device says that it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Features {
    /// It was opened through iommufd.
    pub iommufd: bool,
    /// Its state can be saved and loaded; none where it cannot.
    pub migration: Option<Migration>,
    /// It can tell which memory it has written.
    pub dma_logging: bool,
    /// The kernel advertises a reset of the device. mtty has one that it does not advertise.
    pub reset: bool,
    /// MSI-X vectors.
    pub msix_vectors: u32,
    /// MSI vectors.
    pub msi_vectors: u32,
    /// It has a legacy interrupt.
    pub intx: bool,
}

/// The optional states of a device that can be migrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// It can be quiesced together with its peers.
    pub p2p: bool,
    /// It can stream state while it runs.
    pub pre_copy: bool,
}

/// Reads what the host offers.
#[must_use]
pub fn host(roots: &Roots) -> Host {
    let devices = |bus| -> Vec<_> {
        sysfs::list(roots, bus)
            .into_iter()
            .map(|host| inspect(roots, host))
            .collect()
    };
    let functions = devices(Bus::Pci);
    let groups: BTreeSet<u32> = functions
        .iter()
        .filter_map(|device| Some(device.host.group.as_ref()?.id))
        .collect();
    Host {
        iommu_groups: groups.len(),
        iommu_table: ["DMAR", "IVRS"].into_iter().find(|table| {
            let tables = roots.sys.join("firmware/acpi/tables");
            tables.join(table).exists()
        }),
        groups: roots.container().exists(),
        iommufd: roots.iommufd().exists(),
        memlock_limit: memlock_limit(),
        memlock_exempt: may_lock_any_amount(),
        functions,
        mdevs: devices(Bus::Mdev),
    }
}

fn inspect(roots: &Roots, host: HostDevice) -> Device {
    Device {
        has_cdev: host.cdev(roots).is_some(),
        physical_function: physical_function(&host.path),
        obstacle: host.check().err().map(|error| error.to_string()),
        host,
    }
}

fn physical_function(device: &Path) -> Option<String> {
    let function = std::fs::read_link(device.join("physfn")).ok()?;
    Some(function.file_name()?.to_str()?.to_owned())
}

/// Neither a type1 container nor iommufd charges a process that has this capability in the initial user namespace.
fn may_lock_any_amount() -> bool {
    // A kernel without user namespaces has no such link, and only the initial one.
    let namespace = std::fs::read_link("/proc/self/ns/user");
    namespace.map_or(true, |it| it == Path::new(INITIAL_USER_NAMESPACE))
        && rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Whether a failure to open a device means that another process has it, or another device of its group.
#[must_use]
pub fn is_in_use(error: &Error) -> bool {
    match error {
        Error::Open { what, source, .. } => match source.raw_os_error() {
            Some(libc::EBUSY) => true,
            Some(libc::EINVAL) => *what == BIND,
            _ => false,
        },
        _ => false,
    }
}

/// Fails for a device that somebody has, whichever way. Opening a group touches no device, whereas binding a node a second time fails
/// only after the kernel has taken the first user's reference to its VM away.
pub(super) fn refuse_if_in_use(roots: &Roots, host: &HostDevice) -> Result<(), Error> {
    let Some(group) = &host.group else {
        return Ok(());
    };
    let node = roots.group(group.id);
    match File::options().read(true).write(true).open(&node) {
        Err(source) if source.raw_os_error() == Some(libc::EBUSY) => {
            Err(open_error(host, "open", &node)(source))
        }
        // Whatever else is wrong with it matters only if the device is opened through it.
        _ => Ok(()),
    }
}

/// Opens a device for a moment and asks what it can do. `iommufd` chooses the way, as `platform.iommufd` does.
///
/// # Errors
/// When it cannot be opened, for instance because a VM has it, or does not answer.
pub fn probe(roots: &Roots, host: &HostDevice, iommufd: Option<bool>) -> Result<Features, Error> {
    host.check()?;
    refuse_if_in_use(roots, host)?;
    let way = Way::choose(roots, std::slice::from_ref(host), iommufd)?;
    let device = Arc::new(Iommu::new(roots, way, host, None)?.open(roots, host)?);
    let ask = || -> io::Result<Features> {
        let migration = KernelDevice::new(Arc::clone(&device));
        let vectors = |index: IrqIndex| {
            ioctl::irq_info(device.as_fd(), index as u32).map_or(0, |info| info.count)
        };
        Ok(Features {
            iommufd: way == Way::Iommufd,
            migration: migration
                .probe()?
                .filter(|flags| flags.contains(MigFlags::STOP_COPY))
                .map(|flags| Migration {
                    p2p: flags.contains(MigFlags::P2P),
                    pre_copy: flags.contains(MigFlags::PRE_COPY),
                }),
            dma_logging: migration.has_dma_logging()?,
            reset: device.advertises_reset(),
            msix_vectors: vectors(IrqIndex::Msix),
            msi_vectors: vectors(IrqIndex::Msi),
            intx: vectors(IrqIndex::Intx) > 0,
        })
    };
    ask().map_err(|source| Error::Describe {
        name: host.name.clone(),
        what: "read the features",
        source,
    })
}
