//! Devices opened through their IOMMU group and a type1 container: `/dev/vfio/vfio` and `/dev/vfio/GROUP`.
//!
//! A group is opened once for all of its devices that the VM has, since the kernel opens it for one user only. All groups share
//! one container, so RAM is pinned and mapped once.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use vfio_bindings::bindings::vfio::VFIO_GROUP_FLAGS_VIABLE;
use vfio_ioctls::VfioContainer;

use super::dma::io_error;
use super::error::{Error, SET_IOMMU};
use super::ioctl;
use super::sysfs::{self, HostDevice, Roots};
use crate::kvm::VfioKvmDevice;

/// A type1 container and the groups in it.
pub(super) struct Container {
    vfio: Arc<VfioContainer>,
    kvm: Option<Arc<VfioKvmDevice>>,
    groups: Mutex<BTreeMap<u32, Weak<Group>>>,
}

/// A group in a container. Dropping it takes it out.
struct Group {
    file: File,
    kvm: Option<Arc<VfioKvmDevice>>,
    _container: Arc<VfioContainer>,
}

/// A device of a group. The descriptor closes before the group leaves its container.
pub(super) struct GroupDevice {
    pub(super) fd: OwnedFd,
    _group: Arc<Group>,
}

impl Container {
    pub(super) fn new(
        roots: &Roots,
        device: &str,
        kvm: Option<Arc<VfioKvmDevice>>,
    ) -> Result<Self, Error> {
        let vfio = VfioContainer::new(None).map_err(|error| Error::Open {
            name: device.to_owned(),
            what: "use the VFIO container",
            node: roots.container(),
            source: io_error(error),
        })?;
        Ok(Self {
            vfio: Arc::new(vfio),
            kvm,
            groups: Mutex::default(),
        })
    }

    /// The address space of the container.
    pub(super) fn vfio(&self) -> &Arc<VfioContainer> {
        &self.vfio
    }

    pub(super) fn open(&self, roots: &Roots, device: &HostDevice) -> Result<GroupDevice, Error> {
        let group = device.group.as_ref().ok_or_else(|| Error::NoIommu {
            name: device.name.clone(),
        })?;
        let node = roots.group(group.id);
        let opened = self.group(group, &node, device)?;
        let fd = CString::new(device.name.as_str())
            .map_err(io::Error::from)
            .and_then(|name| ioctl::group_device(opened.file.as_fd(), &name))
            .map_err(open_error(device, "open the device in", &node))?;
        Ok(GroupDevice { fd, _group: opened })
    }

    fn group(
        &self,
        group: &sysfs::Group,
        node: &Path,
        device: &HostDevice,
    ) -> Result<Arc<Group>, Error> {
        let mut groups = self
            .groups
            .lock()
            .expect("no code panics while it holds this lock");
        if let Some(open) = groups.get(&group.id).and_then(Weak::upgrade) {
            return Ok(open);
        }
        groups.retain(|_, group| group.strong_count() > 0);
        let file = File::options()
            .read(true)
            .write(true)
            .open(node)
            .map_err(open_error(device, "open", node))?;
        let status = ioctl::group_status(file.as_fd()).map_err(open_error(
            device,
            "ask the state of",
            node,
        ))?;
        if status & VFIO_GROUP_FLAGS_VIABLE == 0 {
            let others = group
                .members
                .iter()
                .filter(|member| member.name != device.name);
            return Err(Error::GroupNotViable {
                name: device.name.clone(),
                group: group.id,
                blockers: others.cloned().collect(),
            });
        }
        let container = self.vfio.as_ref();
        ioctl::set_container(file.as_fd(), container).map_err(open_error(
            device,
            "put into a container",
            node,
        ))?;
        let mut opened = Group {
            file,
            kvm: None,
            _container: Arc::clone(&self.vfio),
        };
        if groups.is_empty() {
            ioctl::set_type1_iommu(container).map_err(open_error(device, SET_IOMMU, node))?;
        }
        if let Some(kvm) = &self.kvm {
            kvm.add(opened.file.as_fd())
                .map_err(open_error(device, "tell KVM about", node))?;
            opened.kvm = Some(Arc::clone(kvm));
        }
        let opened = Arc::new(opened);
        groups.insert(group.id, Arc::downgrade(&opened));
        Ok(opened)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.file.as_fd();
        if let Some(Err(error)) = self.kvm.as_ref().map(|kvm| kvm.remove(group)) {
            tracing::warn!("KVM keeps a VFIO group of a removed device: {error}");
        }
        if let Err(error) = ioctl::unset_container(group) {
            tracing::warn!("a VFIO group of a removed device stays in its container: {error}");
        }
    }
}

/// Wraps what the kernel answered about a node.
pub(super) fn open_error(
    device: &HostDevice,
    what: &'static str,
    node: &Path,
) -> impl FnOnce(io::Error) -> Error {
    let (name, node) = (device.name.clone(), node.to_owned());
    move |source| Error::Open {
        name,
        what,
        node,
        source,
    }
}
