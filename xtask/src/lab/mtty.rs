//! Builds `mtty.ko`, the kernel's sample mediated device that can migrate, against the lab kernel's headers.
//!
//! Its source comes from the distribution's `linux-source` package at preparation time; nothing of it is kept in
//! this repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::process;

/// Extracts `samples/vfio-mdev/mtty.c` from the source package into `directory`, builds it, returns the module.
pub fn build(source_package: &Path, headers: &Path, directory: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    extract_source(source_package, "*/samples/vfio-mdev/mtty.c", 3, directory)?;
    let makefile = directory.join("Makefile");
    fs::write(&makefile, "obj-m := mtty.o\n").map_err(Error::file("write", &makefile))?;
    let mut make = Command::new("make");
    // Type information for BPF would need one more program, and mtty has no use for it.
    make.arg("-C")
        .arg(headers)
        .arg(format!("M={}", directory.display()))
        .args(["CC=gcc", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    process::run(&mut make)?;
    Ok(directory.join("mtty.ko"))
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
