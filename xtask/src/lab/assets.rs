//! What every lab run starts from, prepared once below `<target>/lab`: kernel, modules, mtty, busybox and the L2
//! initramfs. Each step carries a stamp, so that preparing again does nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::lab::apt::{self, PrivateApt};
use crate::lab::emulator::{self, Emulator};
use crate::lab::kernel_package::KernelPackages;
use crate::lab::modules::ModuleTree;
use crate::lab::{bzimage, host_tools, initramfs, mtty};
use crate::stamp::{self, Key};
use crate::workspace::Workspace;

/// Raised when the way packages are chosen or unpacked changes, so that old assets are made anew.
const RECIPE: &str = "packages 2";

/// The prepared files.
pub struct Assets {
    /// The lab's directory.
    pub directory: PathBuf,
    /// The distribution's kernel image, which both L1 and L2 boot.
    pub vmlinuz: PathBuf,
    /// A static busybox, the whole user space of L1 and L2.
    pub busybox: PathBuf,
    /// The migratable sample device, for the distribution's kernel.
    pub mtty: mtty::Modules,
    /// The initramfs of L2.
    pub l2_initramfs: PathBuf,
    /// The kernel's modules.
    pub modules: ModuleTree,
    /// The package with the kernel's source.
    pub source_package: PathBuf,
    /// What L1 runs on.
    pub emulator: Emulator,
}

impl Assets {
    /// Prepares what is not there yet.
    pub fn prepare(workspace: &Workspace) -> Result<Assets, Error> {
        let directory = workspace.lab();
        fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
        host_tools::for_lab()?;

        let root = directory.join("root");
        let packages = directory.join("packages");
        let os_release = Path::new("/etc/os-release");
        let key = Key::default().text(RECIPE).file(os_release)?;
        stamp::once(directory.join("packages.stamp"), &key, || {
            fetch(&directory, &packages, &root)
        })?;
        let chosen = directory.join("kernel");
        let chosen = fs::read_to_string(&chosen).map_err(Error::file("read", &chosen))?;
        let (release, source) = chosen.trim().split_once(' ').ok_or(Error::NoKernel)?;
        let source_package = apt::downloaded(&packages, source)?;

        let vmlinuz = root.join("boot").join(format!("vmlinuz-{release}"));
        let vmlinux = directory.join("vmlinux");
        let of_kernel = Key::default().text(RECIPE).text(release);
        stamp::once(directory.join("vmlinux.stamp"), &of_kernel, || {
            println!("lab: unpacking vmlinux from {}", vmlinuz.display());
            bzimage::extract_vmlinux(&vmlinuz, &vmlinux)
        })?;

        let mtty = directory.join("mtty");
        let of_mtty = Key::default().text(mtty::RECIPE).text(release);
        stamp::once(directory.join("mtty.stamp"), &of_mtty, || {
            println!("lab: building mtty.ko and mtty-msi.ko for {release}");
            let headers = root
                .join("usr/src")
                .join(format!("linux-headers-{release}"));
            mtty::build(&source_package, &headers, &mtty)
        })?;

        let modules =
            ["lib/modules", "usr/lib/modules"].map(|parent| root.join(parent).join(release));
        let modules = modules
            .iter()
            .find(|path| path.is_dir())
            .ok_or_else(|| Error::Missing {
                what: format!("lib/modules/{release}"),
                searched: root.clone(),
            })?;
        let modules = ModuleTree::open(modules, &directory.join("modules").join(release))?;

        let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| root.join(path));
        let busybox = busybox
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| Error::Missing {
                what: "busybox".to_string(),
                searched: root.clone(),
            })?;
        let mut assets = Assets {
            vmlinuz,
            busybox,
            mtty: mtty::Modules::of(&mtty),
            l2_initramfs: directory.join("l2.cpio"),
            modules,
            source_package,
            emulator: Emulator::find(&root),
            directory,
        };
        assets.pack_l2(workspace)?;
        Ok(assets)
    }

    /// Where the logs of a run are kept.
    pub fn logs(&self, name: &str) -> PathBuf {
        self.directory.join("logs").join(name)
    }

    fn pack_l2(&mut self, workspace: &Workspace) -> Result<(), Error> {
        let init = workspace.lab_sources().join("l2-init");
        let order = self.modules.load_order(&initramfs::L2_MODULES)?;
        let mut key = Key::default().file(&init)?.large_file(&self.busybox)?;
        for module in &order {
            key = key.large_file(module)?;
        }
        stamp::once(self.directory.join("l2.stamp"), &key, || {
            initramfs::pack_l2(self, &init, &order)
        })?;
        Ok(())
    }
}

/// Downloads and unpacks the packages, and notes which kernel they hold.
fn fetch(directory: &Path, packages: &Path, root: &Path) -> Result<(), Error> {
    println!(
        "lab: asking the distribution for a kernel (a private apt root, nothing of the machine's changes)"
    );
    let apt = PrivateApt::open(&directory.join("apt"))?;
    let kernel = KernelPackages::choose(&apt)?;
    for fresh in [packages, root] {
        if fresh.exists() {
            fs::remove_dir_all(fresh).map_err(Error::file("remove", fresh))?;
        }
        fs::create_dir_all(fresh).map_err(Error::file("create", fresh))?;
    }
    let mut wanted = kernel.packages.clone();
    wanted.push("busybox-static".to_string());
    let source_version = apt.version(&kernel.source)?;
    println!(
        "lab: downloading linux {} and its source {source_version} (about 300 MB)",
        kernel.release
    );
    let all: Vec<String> = wanted
        .iter()
        .cloned()
        .chain([kernel.source.clone()])
        .collect();
    apt.download(&all, packages)?;
    for name in &wanted {
        let package = apt::downloaded(packages, name)?;
        apt::unpack(&package, root)?;
        // Unpacked, they are of no more use; the source package stays for the second kernel.
        fs::remove_file(&package).map_err(Error::file("remove", &package))?;
    }
    relocate_headers(root, &kernel.release)?;
    emulator::fetch(&apt, packages, root)?;
    let note = directory.join("kernel");
    fs::write(&note, format!("{} {}\n", kernel.release, kernel.source))
        .map_err(Error::file("write", &note))
}

/// Debian's headers name their common part by its installed path; here they lie below `root`.
fn relocate_headers(root: &Path, release: &str) -> Result<(), Error> {
    let makefile = root
        .join("usr/src")
        .join(format!("linux-headers-{release}"))
        .join("Makefile");
    let text = fs::read_to_string(&makefile).map_err(Error::file("read", &makefile))?;
    let sources = root.join("usr/src");
    let moved = text.replace(
        "include /usr/src/",
        &format!("include {}/", sources.display()),
    );
    fs::write(&makefile, moved).map_err(Error::file("write", &makefile))
}
