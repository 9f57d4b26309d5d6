//! The second L1 kernel: small, with iommufd, VFIO cdevs and VFIO debugfs, which the distribution's kernel lacks.
//!
//! Built once from the distribution's kernel source and `resources/lab/iommufd-kernel.config`; about six minutes on
//! two cores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::error::Error;
use crate::lab::assets::Assets;
use crate::lab::{host_tools, mtty};
use crate::process;
use crate::stamp::{self, Key};

/// The built kernel.
pub struct IommufdKernel {
    /// The bzImage.
    pub image: PathBuf,
    /// What mtty stands on.
    pub mdev: PathBuf,
    /// The migratable sample device. There are no other modules.
    pub mtty: mtty::Modules,
}

impl IommufdKernel {
    /// Builds it unless it is there.
    pub fn prepare(assets: &Assets, sources: &Path) -> Result<IommufdKernel, Error> {
        let config = sources.join("iommufd-kernel.config");
        let results = assets.directory.join("iommufd");
        // The package's file name holds its version.
        let package = assets
            .source_package
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let key = Key::default()
            .file(&config)?
            .text(&package)
            .text(mtty::RECIPE);
        stamp::once(assets.directory.join("iommufd.stamp"), &key, || {
            host_tools::for_kernel_build()?;
            println!("lab: building the iommufd kernel (minutes; once)");
            let tree = assets.directory.join("iommufd-source");
            build(assets, &config, &tree)?;
            keep(&tree, &results)
        })?;
        Ok(IommufdKernel {
            image: results.join("bzImage"),
            mdev: results.join("mdev.ko"),
            mtty: mtty::Modules::of(&results),
        })
    }
}

/// Keeps what is booted and loaded; the tree it was built in is large.
fn keep(tree: &Path, results: &Path) -> Result<(), Error> {
    fs::create_dir_all(results).map_err(Error::file("create", results))?;
    for built in [
        "arch/x86/boot/bzImage",
        "drivers/vfio/mdev/mdev.ko",
        "samples/vfio-mdev/mtty.ko",
        "samples/vfio-mdev/mtty-msi.ko",
    ] {
        let from = tree.join(built);
        let to = results.join(Path::new(built).file_name().unwrap_or_default());
        fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
    }
    fs::remove_dir_all(tree).map_err(Error::file("remove", tree))
}

fn build(assets: &Assets, config: &Path, tree: &Path) -> Result<(), Error> {
    if tree.exists() {
        fs::remove_dir_all(tree).map_err(Error::file("remove", tree))?;
    }
    fs::create_dir_all(tree).map_err(Error::file("create", tree))?;
    mtty::extract_source(&assets.source_package, "*", 1, tree)?;
    mtty::add_to_tree(tree)?;
    make(tree, &["tinyconfig"])?;
    let mut merge = Command::new("scripts/kconfig/merge_config.sh");
    process::run(merge.args(["-m", ".config"]).arg(config).current_dir(tree))?;
    make(tree, &["olddefconfig"])?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    make(tree, &[&format!("-j{jobs}"), "bzImage", "modules"])
}

fn make(tree: &Path, arguments: &[&str]) -> Result<(), Error> {
    process::run(Command::new("make").arg("-C").arg(tree).args(arguments)).map(drop)
}
