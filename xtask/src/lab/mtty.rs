//! Builds `mtty.ko`, the kernel's sample mediated device that can migrate, against the lab kernel's headers, and from the same source
//! `mtty-msi.ko`, which shows guests the MSI that mtty has.
//!
//! The source comes from the distribution's `linux-source` package at preparation time; nothing of it is kept in
//! this repository.
//!
//! mtty signals by MSI as well as by INTx (`VFIO_PCI_MSI_IRQ_INDEX`), but its configuration space has no MSI capability, and Linux's
//! serial driver uses MSI only for the chips that it knows to have it. So the second module presents itself as one of those, and
//! has the capability. Everything behind configuration space is the kernel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::process;

/// Raised when the modules are made in another way.
pub const RECIPE: &str = "mtty 2";

/// What differs in the second module: a line of `mtty_create_config_space`, and what stands there instead.
const SHOWS_MSI: [(&str, &str); 4] = [
    // MosChip MCS9912, of which `pci_use_msi` in the kernel's 8250_pci.c says that it has MSI.
    (
        "STORE_LE32((u32 *) &mdev_state->vconfig[0x0], 0x32534348);",
        "STORE_LE32((u32 *) &mdev_state->vconfig[0x0], 0x99129710);",
    ),
    (
        "STORE_LE32((u32 *) &mdev_state->vconfig[0x2c], 0x32534348);",
        "STORE_LE32((u32 *) &mdev_state->vconfig[0x2c], 0x1000a000);",
    ),
    // Status: there is a capability list.
    (
        "STORE_LE16((u16 *) &mdev_state->vconfig[0x6], 0x0200);",
        "STORE_LE16((u16 *) &mdev_state->vconfig[0x6], 0x0210);",
    ),
    // One capability: MSI with a 64-bit address and one vector.
    (
        "mdev_state->vconfig[0x34] =  0x00;",
        "mdev_state->vconfig[0x34] = 0x50; mdev_state->vconfig[0x50] = 0x05; mdev_state->vconfig[0x52] = 0x80;",
    ),
];

/// The modules, one of which an L1 loads.
pub struct Modules {
    /// As the kernel has it: guests use INTx.
    pub plain: PathBuf,
    /// Shows guests its MSI.
    pub with_msi: PathBuf,
}

impl Modules {
    /// The modules that were built in `directory`.
    pub fn of(directory: &Path) -> Modules {
        Modules {
            plain: directory.join("mtty.ko"),
            with_msi: directory.join("mtty-msi.ko"),
        }
    }
}

/// Extracts `samples/vfio-mdev/mtty.c` from the source package into `directory` and builds both modules there.
pub fn build(source_package: &Path, headers: &Path, directory: &Path) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    extract_source(source_package, "*/samples/vfio-mdev/mtty.c", 3, directory)?;
    derive_with_msi(directory)?;
    let makefile = directory.join("Makefile");
    fs::write(&makefile, "obj-m := mtty.o mtty-msi.o\n")
        .map_err(Error::file("write", &makefile))?;
    let mut make = Command::new("make");
    // Type information for BPF would need one more program, and mtty has no use for it.
    make.arg("-C")
        .arg(headers)
        .arg(format!("M={}", directory.display()))
        .args(["CC=gcc", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    process::run(&mut make).map(drop)
}

/// Has a kernel tree build both modules wherever it would build `mtty.ko`.
pub fn add_to_tree(tree: &Path) -> Result<(), Error> {
    let samples = tree.join("samples/vfio-mdev");
    derive_with_msi(&samples)?;
    let makefile = samples.join("Makefile");
    let mut text = fs::read_to_string(&makefile).map_err(Error::file("read", &makefile))?;
    text.push_str("\nobj-$(CONFIG_SAMPLE_VFIO_MDEV_MTTY) += mtty-msi.o\n");
    fs::write(&makefile, text).map_err(Error::file("write", &makefile))
}

/// Writes `mtty-msi.c` beside `mtty.c`.
fn derive_with_msi(directory: &Path) -> Result<(), Error> {
    let original = directory.join("mtty.c");
    let text = fs::read_to_string(&original).map_err(Error::file("read", &original))?;
    let derived = with_msi(&text).map_err(|what| Error::Missing {
        what: format!("the line `{what}`"),
        searched: original,
    })?;
    let path = directory.join("mtty-msi.c");
    fs::write(&path, derived).map_err(Error::file("write", &path))
}

/// The source of the second module, or the line that a newer kernel does not have any more.
fn with_msi(source: &str) -> Result<String, &'static str> {
    SHOWS_MSI
        .iter()
        .try_fold(source.to_string(), |text, (line, instead)| {
            if text.contains(line) {
                Ok(text.replace(line, instead))
            } else {
                Err(*line)
            }
        })
}

/// Unpacks files of the kernel source inside a `linux-source` package, without `strip` leading directories.
pub fn extract_source(
    package: &Path,
    pattern: &str,
    strip: u32,
    directory: &Path,
) -> Result<(), Error> {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped());
    let mut dpkg_process = dpkg
        .spawn()
        .map_err(|source| process::start_error(&dpkg, source))?;
    let mut inner = Command::new("tar");
    inner.args([
        "--extract",
        "--to-stdout",
        "--wildcards",
        "*/linux-source-*.tar.*",
    ]);
    inner
        .stdin(
            dpkg_process
                .stdout
                .take()
                .map_or_else(Stdio::null, Stdio::from),
        )
        .stdout(Stdio::piped());
    let mut inner_process = inner
        .spawn()
        .map_err(|source| process::start_error(&inner, source))?;

    // Debian packs its source with xz, Ubuntu with bzip2: tar does not guess on a pipe.
    let listing = process::run(Command::new("dpkg").arg("--contents").arg(package))?;
    let compression = if listing.contains(".tar.bz2") {
        "--bzip2"
    } else {
        "--xz"
    };
    let mut outer = Command::new("tar");
    outer
        .args(["--extract", compression, "--wildcards"])
        .arg(format!("--strip-components={strip}"));
    outer.arg("--directory").arg(directory).arg(pattern);
    outer.stdin(
        inner_process
            .stdout
            .take()
            .map_or_else(Stdio::null, Stdio::from),
    );
    let result = process::run_visibly(&mut outer);
    for (mut child, command) in [(dpkg_process, dpkg), (inner_process, inner)] {
        child
            .wait()
            .map_err(|source| process::start_error(&command, source))?;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::{SHOWS_MSI, with_msi};

    #[test]
    fn a_source_without_one_of_the_lines_is_refused() {
        let whole: String = SHOWS_MSI
            .iter()
            .map(|(line, _)| format!("\t{line}\n"))
            .collect();
        let derived = with_msi(&whole).unwrap();
        for (line, instead) in SHOWS_MSI {
            assert!(derived.contains(instead) && !derived.contains(line));
            assert_eq!(with_msi(&whole.replace(line, "")), Err(line));
        }
    }
}
