//! Refusals and choices over a sysfs tree made for the test.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::error::{ATTACH, BIND, Error, SET_IOMMU};
use super::inspect;
use super::iommu::Way;
use super::open::{Request, check_all, one_per_group};
use super::sysfs::{Bus, HostDevice, Identity, Roots};

/// A directory with `sys` and `dev` in it.
struct FakeHost(TempDir);

impl FakeHost {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn roots(&self) -> Roots {
        Roots {
            sys: self.0.path().join("sys"),
            dev: self.0.path().join("dev"),
        }
    }

    fn node(&self, path: &str) -> &Self {
        let node = self.roots().dev.join(path);
        fs::create_dir_all(node.parent().unwrap()).unwrap();
        fs::write(node, "").unwrap();
        self
    }

    /// Adds a device and answers its path on its bus.
    fn device(&self, bus: &str, name: &str, driver: Option<&str>, group: Option<u32>) -> PathBuf {
        let sys = self.roots().sys;
        let device = sys.join("devices/pci0000:00").join(name);
        let on_bus = sys.join("bus").join(bus).join("devices").join(name);
        for directory in [&device, &sys.join("bus").join(bus).join("devices")] {
            fs::create_dir_all(directory).unwrap();
        }
        symlink(&device, &on_bus).unwrap();
        symlink(sys.join("bus").join(bus), device.join("subsystem")).unwrap();
        for (file, text) in [
            ("vendor", "0x15b3\n"),
            ("device", "0x101e\n"),
            ("class", "0x020000\n"),
        ] {
            fs::write(device.join(file), text).unwrap();
        }
        if let Some(driver) = driver {
            symlink(
                sys.join("bus").join(bus).join("drivers").join(driver),
                device.join("driver"),
            )
            .unwrap();
        }
        if let Some(group) = group {
            let directory = sys.join(format!("kernel/iommu_groups/{group}"));
            fs::create_dir_all(directory.join("devices")).unwrap();
            symlink(&device, directory.join("devices").join(name)).unwrap();
            symlink(directory, device.join("iommu_group")).unwrap();
        }
        on_bus
    }

    fn vfio_name(&self, device: &Path, name: &str) {
        fs::create_dir_all(device.join("vfio-dev").join(name)).unwrap();
    }
}

const VF: &str = "0000:41:00.3";
const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

fn read(path: &Path) -> HostDevice {
    HostDevice::read(path).unwrap()
}

fn refusal(path: &Path) -> Error {
    check_all(&[Request { id: "vfio0", path }], &[]).expect_err("refused")
}

#[test]
fn a_virtual_function_of_a_variant_driver_is_accepted() {
    let host = FakeHost::new();
    let path = host.device("pci", VF, Some("mlx5_vfio_pci"), Some(7));
    let device = read(&path.join(""));
    assert_eq!((device.name.as_str(), device.bus), (VF, Bus::Pci));
    assert_eq!(
        device.identity,
        Some(Identity {
            vendor: 0x15b3,
            device: 0x101e,
            class: 0x02_0000
        })
    );
    assert_eq!(device.group.as_ref().map(|group| group.id), Some(7));
    device.check().unwrap();
}

#[test]
fn a_driver_is_recognised_by_its_vfio_device_whatever_its_name() {
    let host = FakeHost::new();
    let path = host.device("pci", VF, Some("qat_live"), Some(7));
    assert!(matches!(refusal(&path), Error::NotBound { .. }));
    host.vfio_name(&path, "vfio3");
    let device = read(&path);
    device.check().unwrap();
    assert_eq!(device.vfio_name.as_deref(), Some("vfio3"));
}

#[test]
fn paths_that_are_no_device_are_refused() {
    let host = FakeHost::new();
    let missing = host.roots().sys.join("bus/pci/devices/0000:00:1f.7");
    assert!(matches!(refusal(&missing), Error::NotFound { .. }));
    assert!(matches!(refusal(host.0.path()), Error::NotPassable { .. }));
    let usb = host.device("usb", "1-1", Some("usb"), None);
    assert!(matches!(refusal(&usb), Error::NotPassable { .. }));
    assert!(matches!(refusal(Path::new("")), Error::NotFound { .. }));
}

#[test]
fn a_device_of_a_host_driver_is_refused_with_the_way_to_rebind_it() {
    let host = FakeHost::new();
    let bound = refusal(&host.device("pci", VF, Some("mlx5_core"), Some(7))).to_string();
    assert!(bound.contains("driver mlx5_core"), "{bound}");
    assert!(
        bound.contains("echo 0000:41:00.3 > /sys/bus/pci/devices/0000:41:00.3/driver/unbind"),
        "{bound}"
    );
    let unbound = refusal(&host.device("pci", "0000:41:00.4", None, Some(8))).to_string();
    assert!(
        unbound.contains("bound to no driver") && !unbound.contains("unbind"),
        "{unbound}"
    );
}

#[test]
fn a_function_without_an_iommu_is_refused() {
    let host = FakeHost::new();
    assert!(matches!(
        refusal(&host.device("pci", VF, Some("vfio-pci"), None)),
        Error::NoIommu { .. }
    ));
    let unsafe_mode = host.device("pci", "0000:41:00.4", Some("vfio-pci"), Some(0));
    fs::write(unsafe_mode.join("iommu_group/name"), "vfio-noiommu\n").unwrap();
    assert!(matches!(refusal(&unsafe_mode), Error::NoIommu { .. }));
}

#[test]
fn a_group_names_the_members_that_block_it() {
    let host = FakeHost::new();
    let path = host.device("pci", VF, Some("vfio-pci"), Some(7));
    host.device("pci", "0000:40:00.0", Some("pcieport"), Some(7));
    host.device("pci", "0000:41:00.0", None, Some(7));
    read(&path).check().unwrap();
    host.device("pci", "0000:41:00.1", Some("nvme"), Some(7));
    let error = refusal(&path);
    let Error::GroupNotViable {
        group: 7, blockers, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(blockers.len(), 1);
    assert!(error.to_string().contains("0000:41:00.1 (nvme)"), "{error}");
}

#[test]
fn a_mediated_device_needs_no_iommu_and_any_driver_of_its_bus() {
    let host = FakeHost::new();
    let device = read(&host.device("mdev", UUID, Some("mtty"), None));
    assert_eq!((device.bus, device.identity), (Bus::Mdev, None));
    device.check().unwrap();
    // The kernel names a mediated device's group as it names those of functions without an IOMMU.
    let other = host.device(
        "mdev",
        "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002",
        Some("mtty"),
        Some(4),
    );
    fs::write(other.join("iommu_group/name"), "vfio-noiommu\n").unwrap();
    assert_eq!(read(&other).group.map(|group| group.id), Some(4));
}

#[test]
fn the_same_device_by_two_paths_is_refused() {
    let host = FakeHost::new();
    let path = host.device("pci", VF, Some("vfio-pci"), Some(7));
    let other = host.device("pci", "0000:41:00.4", Some("vfio-pci"), Some(8));
    let direct = fs::canonicalize(&path).unwrap();
    let requests = [
        Request {
            id: "a",
            path: &path,
        },
        Request {
            id: "b",
            path: &other,
        },
        Request {
            id: "c",
            path: &direct,
        },
    ];
    let error = check_all(&requests, &[]).unwrap_err();
    assert!(
        matches!(&error, Error::Duplicate { first, second, .. } if first == "a" && second == "c"),
        "{error}"
    );
    let error = check_all(&requests[..1], &[("old", &direct)]).unwrap_err();
    assert!(
        matches!(&error, Error::Duplicate { first, .. } if first == "old"),
        "{error}"
    );
    assert_eq!(check_all(&requests[..2], &[]).unwrap().len(), 2);
}

#[test]
fn iommufd_is_chosen_only_where_every_device_has_a_node() {
    let host = FakeHost::new();
    let roots = host.roots();
    let path = host.device("pci", VF, Some("vfio-pci"), Some(7));
    let choose = |wanted| Way::choose(&roots, &[read(&path)], wanted);
    assert_eq!(choose(None).unwrap(), Way::Groups);
    assert!(
        matches!(choose(Some(true)), Err(Error::NoIommufd { node, .. }) if node.ends_with("iommu"))
    );
    host.node("iommu");
    host.vfio_name(&path, "vfio3");
    assert!(
        matches!(choose(Some(true)), Err(Error::NoIommufd { node, .. }) if node.ends_with("devices/vfio3"))
    );
    assert_eq!(choose(None).unwrap(), Way::Groups);
    host.node("vfio/devices/vfio3");
    assert_eq!(choose(None).unwrap(), Way::Iommufd);
    assert_eq!(choose(Some(true)).unwrap(), Way::Iommufd);
    assert_eq!(choose(Some(false)).unwrap(), Way::Groups);
    let old = host.device("mdev", UUID, Some("mtty"), None);
    let both = [read(&path), read(&old)];
    assert_eq!(Way::choose(&roots, &both, None).unwrap(), Way::Groups);
}

#[test]
fn doctor_tells_what_is_there_and_what_is_in_the_way() {
    let host = FakeHost::new();
    let empty = inspect::host(&host.roots());
    assert_eq!(
        (empty.iommu_groups, empty.groups, empty.iommufd),
        (0, false, false)
    );
    assert!(empty.functions.is_empty() && empty.mdevs.is_empty());

    host.node("vfio/vfio");
    let tables = host.roots().sys.join("firmware/acpi/tables");
    fs::create_dir_all(&tables).unwrap();
    fs::write(tables.join("DMAR"), "").unwrap();
    let path = host.device("pci", VF, Some("vfio-pci"), Some(7));
    symlink("../0000:41:00.0", path.join("physfn")).unwrap();
    host.device("pci", "0000:41:00.4", Some("mlx5_core"), Some(8));
    host.device("mdev", UUID, Some("mtty"), Some(9));
    let full = inspect::host(&host.roots());
    assert_eq!(
        (full.iommu_groups, full.groups, full.iommufd),
        (2, true, false),
        "the mediated device's group is none of an IOMMU"
    );
    assert_eq!((empty.iommu_table, full.iommu_table), (None, Some("DMAR")));
    let parents: Vec<_> = full
        .functions
        .iter()
        .map(|device| device.physical_function.as_deref())
        .collect();
    assert_eq!(parents, [Some("0000:41:00.0"), None]);
    let obstacles: Vec<_> = full
        .functions
        .iter()
        .map(|device| device.obstacle.is_some())
        .collect();
    assert_eq!(obstacles, [false, true]);
    let json = serde_json::to_value(&full).unwrap();
    assert_eq!(json["functions"][1]["driver"], "mlx5_core");
    assert_eq!(json["mdevs"][0]["bus"], "mdev");
}

#[test]
fn what_to_do_about_eperm_depends_on_what_was_done() {
    let text = |what| {
        let error = Error::Open {
            name: VF.to_owned(),
            what,
            node: PathBuf::from("/dev/vfio/7"),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        error.to_string()
    };
    assert!(text("open").contains("read and write access to /dev/vfio/7"));
    for (what, module) in [
        (BIND, "iommufd."),
        (ATTACH, "iommufd."),
        (SET_IOMMU, "vfio_iommu_type1."),
    ] {
        let text = text(what);
        for part in ["interrupt remapping", "RMRR", "dmesg", module] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("run as root"), "{text}");
    }
}

#[test]
fn each_group_is_tried_once_and_none_of_the_own_ones() {
    let host = FakeHost::new();
    let device = |function: u32, group| {
        let name = format!("0000:41:00.{function}");
        read(&host.device("pci", &name, Some("vfio-pci"), group))
    };
    let devices = [
        device(0, Some(7)),
        device(1, Some(7)),
        device(2, Some(8)),
        device(3, Some(9)),
        device(4, None),
    ];
    let tried = |own: &[u32]| {
        let devices = one_per_group(&devices, own);
        let names = devices.into_iter().map(|device| device.name.clone());
        names.collect::<Vec<_>>()
    };
    let all = ["0000:41:00.0", "0000:41:00.2", "0000:41:00.3"];
    assert_eq!(tried(&[]), all);
    assert_eq!(tried(&[8, 7]), all[2..]);
}
