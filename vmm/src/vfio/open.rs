//! Opening the devices of a VM: everything that can be refused is refused before the first one is opened.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::alarms::Watch;
use super::device::{GuestSide, KernelFunction};
use super::error::Error;
use super::inspect::refuse_if_in_use;
use super::iommu::{Iommu, Way};
use super::sysfs::{HostDevice, Roots};
use crate::events::EventSender;
use crate::kvm::{VfioKvmDevice, Vm};
use crate::memory::{Ram, SlotAllocator};

/// A device that the config names.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its id in the VM.
    pub id: &'a str,
    /// Its sysfs directory.
    pub path: &'a Path,
}

/// Where devices go.
pub struct Placement {
    /// The VM.
    pub vm: Arc<Vm>,
    /// RAM that the devices reach by DMA.
    pub ram: Ram,
    /// Memory slots for BARs.
    pub slots: Arc<SlotAllocator>,
    /// Open devices through iommufd (true), through groups (false), or as the host allows (none): `platform.iommufd`.
    pub iommufd: Option<bool>,
    /// Map BARs for DMA between the devices: `platform.vfio_p2p_dma`.
    pub peer_to_peer: bool,
    /// Where sysfs and device nodes are.
    pub roots: Roots,
    /// Who is told of [`MachineEvent::DeviceAlarm`](crate::events::MachineEvent::DeviceAlarm).
    pub events: EventSender,
}

/// An open device, for as long as it lives.
struct Taken {
    id: String,
    path: PathBuf,
    function: Weak<KernelFunction>,
}

struct Opened {
    /// The VM can only have one, so it stays when the last device goes.
    kvm: Option<Arc<VfioKvmDevice>>,
    /// Lives as long as a device does.
    iommu: Weak<Iommu>,
    way: Way,
    taken: Vec<Taken>,
}

/// The passed-through devices of one VM.
pub struct HostDevices {
    placement: Placement,
    opened: Mutex<Opened>,
}

impl HostDevices {
    /// None yet.
    #[must_use]
    pub fn new(placement: Placement) -> Self {
        let opened = Opened {
            kvm: None,
            iommu: Weak::new(),
            way: Way::Groups,
            taken: Vec::new(),
        };
        Self {
            placement,
            opened: Mutex::new(opened),
        }
    }

    /// Opens devices and maps RAM for their DMA, in the order of `requests`. Devices may be added later by another call. They close
    /// when their last reference goes.
    ///
    /// # Errors
    /// The first device that cannot be passed through, and why; none of `requests` stays open then.
    pub fn open(&self, requests: &[Request<'_>]) -> Result<Vec<Arc<KernelFunction>>, Error> {
        let Placement {
            vm,
            ram,
            slots,
            iommufd,
            peer_to_peer,
            roots,
            events,
        } = &self.placement;
        let mut opened = self.lock();
        opened
            .taken
            .retain(|taken| taken.function.strong_count() > 0);
        let in_use: Vec<_> = opened
            .taken
            .iter()
            .map(|taken| (taken.id.as_str(), taken.path.as_path()))
            .collect();
        let devices = check_all(requests, &in_use)?;
        let Some(first) = devices.first() else {
            return Ok(Vec::new());
        };

        let iommu = match opened.iommu.upgrade() {
            Some(iommu) => {
                // All devices of a VM share one address space.
                if opened.way == Way::Iommufd {
                    Way::choose(roots, &devices, Some(true))?;
                }
                iommu
            }
            None => {
                let way = Way::choose(roots, &devices, *iommufd)?;
                let kvm = match &opened.kvm {
                    Some(kvm) => Arc::clone(kvm),
                    None => Arc::clone(
                        opened
                            .kvm
                            .insert(Arc::new(VfioKvmDevice::create(vm).map_err(Error::Kvm)?)),
                    ),
                };
                tracing::debug!("VFIO devices are opened through {way:?}");
                opened.way = way;
                Iommu::new(roots, way, first, Some(kvm))?
            }
        };
        if opened.way == Way::Iommufd {
            let own: Vec<_> = opened
                .taken
                .iter()
                .filter_map(|taken| taken.function.upgrade())
                .filter_map(|function| Some(function.host().group.as_ref()?.id))
                .collect();
            for device in one_per_group(&devices, &own) {
                refuse_if_in_use(roots, device)?;
            }
        }
        let watch = Watch::start(events.clone())
            .map(Arc::new)
            .map_err(|source| Error::Alarms { source })?;
        let functions = devices
            .into_iter()
            .zip(requests)
            .map(|(host, request)| {
                let device = iommu.open(roots, &host)?;
                let guest = GuestSide {
                    vm: Arc::clone(vm),
                    slots: Arc::clone(slots),
                    peer_to_peer: *peer_to_peer,
                };
                KernelFunction::new(request.id, host, device, guest, &watch).map(Arc::new)
            })
            .collect::<Result<Vec<_>, _>>()?;
        iommu.map_ram(ram)?;
        opened.iommu = Arc::downgrade(&iommu);
        opened.taken.extend(functions.iter().map(|function| Taken {
            id: function.id().to_owned(),
            path: function.host().path.clone(),
            function: Arc::downgrade(function),
        }));
        Ok(functions)
    }

    fn lock(&self) -> MutexGuard<'_, Opened> {
        self.opened
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

/// One device of each group, but for groups that the VM has devices of already: the kernel does not open those again.
pub(super) fn one_per_group<'a>(devices: &'a [HostDevice], own: &[u32]) -> Vec<&'a HostDevice> {
    let mut seen = own.to_vec();
    let first = |device: &&HostDevice| {
        let Some(group) = &device.group else {
            return false;
        };
        let new = !seen.contains(&group.id);
        seen.push(group.id);
        new
    };
    devices.iter().filter(first).collect()
}

/// Reads what sysfs says of all devices, and refuses what it can refuse.
pub fn check_all(
    requests: &[Request<'_>],
    in_use: &[(&str, &Path)],
) -> Result<Vec<HostDevice>, Error> {
    let mut devices: Vec<HostDevice> = Vec::with_capacity(requests.len());
    for request in requests {
        let device = HostDevice::read(request.path)?;
        let asked = requests
            .iter()
            .zip(&devices)
            .map(|(other, device)| (other.id, device.path.as_path()));
        let twin = in_use
            .iter()
            .copied()
            .chain(asked)
            .find(|(_, path)| *path == device.path);
        if let Some((first, _)) = twin {
            return Err(Error::Duplicate {
                first: first.to_owned(),
                second: request.id.to_owned(),
                path: device.path,
            });
        }
        devices.push(device);
    }
    devices.iter().try_for_each(HostDevice::check)?;
    Ok(devices)
}
