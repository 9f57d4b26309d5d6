//! What is inside the two initramfs archives.
//!
//! L2's is the same for every run. L1's is packed per run, since it carries the binary under test: uncompressed, and
//! with only the modules the run needs, so that packing and unpacking stay well under a second.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::lab::assets::Assets;
use crate::lab::cpio::Archive;
use crate::process;

/// Modules that L2 can load by name; whether it does is up to the words on its command line.
pub const L2_MODULES: [&str; 8] = [
    "nvme",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "e1000e",
    "button",
    "sd_mod",
    "ahci",
];

const DIRECTORIES: [&str; 6] = ["/proc", "/sys", "/dev", "/tmp", "/run", "/root"];

/// What goes into one L1, besides what is always there.
pub struct L1<'a> {
    /// The `dormouse` binary; without one, L1 is still good for looking around.
    pub binary: Option<&'a Path>,
    /// The script that L1 runs; without one it gives a prompt.
    pub script: Option<&'a Path>,
    /// Modules to load, in this order.
    pub modules: &'a [PathBuf],
    /// Further files: their name in L1 and where they are.
    pub files: &'a [(String, PathBuf)],
}

/// Writes L2's initramfs.
pub fn pack_l2(assets: &Assets, init: &Path, order: &[PathBuf]) -> Result<(), Error> {
    let to = &assets.l2_initramfs;
    let mut archive = Packing::create(to)?;
    archive.base(assets, init)?;
    for module in order {
        archive.copy(&format!("/modules/{}", file_name(module)), 0o644, module)?;
    }
    for name in L2_MODULES {
        let order = assets.modules.load_order(&[name])?;
        let list = order
            .iter()
            .map(|module| file_name(module) + "\n")
            .collect::<String>();
        archive.file(&format!("/modules/{name}.list"), 0o644, list.as_bytes())?;
    }
    archive.finish()
}

/// Writes an L1 initramfs to `to`.
pub fn pack_l1(assets: &Assets, sources: &Path, l1: &L1<'_>, to: &Path) -> Result<(), Error> {
    let mut archive = Packing::create(to)?;
    archive.base(assets, &sources.join("l1-init"))?;
    archive.copy("/lab/lib.sh", 0o755, &sources.join("lib.sh"))?;
    archive.copy("/lab/vmlinuz", 0o644, &assets.vmlinuz)?;
    archive.copy("/lab/l2.cpio", 0o644, &assets.l2_initramfs)?;
    let mut order = String::new();
    for module in l1.modules {
        let name = file_name(module);
        archive.copy(&format!("/lab/modules/{name}"), 0o644, module)?;
        order += &(name + "\n");
    }
    archive.file("/lab/modules/order", 0o644, order.as_bytes())?;
    if let Some(script) = l1.script {
        archive.copy("/lab/script.sh", 0o755, script)?;
    }
    if let Some(binary) = l1.binary {
        archive.copy("/bin/dormouse", 0o755, binary)?;
        for library in libraries(binary)? {
            archive.copy(&library.to_string_lossy(), 0o755, &library)?;
        }
    }
    for (name, file) in l1.files {
        archive.copy(name, 0o755, file)?;
    }
    archive.finish()
}

/// The shared libraries and the loader that a binary is linked with.
fn libraries(binary: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let output = process::capture(Command::new("ldd").arg(binary))?;
    Ok(parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

/// `name => /path (address)` and `/path (address)`; a static binary names none.
fn parse_ldd(text: &str) -> BTreeSet<PathBuf> {
    let paths = text.lines().filter_map(|line| {
        let path = line.split("=>").last()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths.collect()
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// An archive on its way to a file: written beside it and renamed at the end.
struct Packing {
    archive: Archive<BufWriter<File>>,
    partial: PathBuf,
    to: PathBuf,
}

impl Packing {
    fn create(to: &Path) -> Result<Packing, Error> {
        let partial = to.with_extension("partial");
        let file = File::create(&partial).map_err(Error::file("create", &partial))?;
        Ok(Packing {
            archive: Archive::new(BufWriter::new(file)),
            partial,
            to: to.into(),
        })
    }

    fn base(&mut self, assets: &Assets, init: &Path) -> Result<(), Error> {
        for directory in DIRECTORIES {
            self.archive
                .directory(directory)
                .map_err(Error::file("write", &self.partial))?;
        }
        self.copy("/bin/busybox", 0o755, &assets.busybox)?;
        self.archive
            .symlink("/bin/sh", "busybox")
            .map_err(Error::file("write", &self.partial))?;
        self.copy("/init", 0o755, init)
    }

    fn copy(&mut self, name: &str, permissions: u32, from: &Path) -> Result<(), Error> {
        self.archive
            .copy(name, permissions, from)
            .map_err(Error::file("pack", from))
    }

    fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> Result<(), Error> {
        self.archive
            .file(name, permissions, contents)
            .map_err(Error::file("write", &self.partial))
    }

    fn finish(self) -> Result<(), Error> {
        let mut file = self
            .archive
            .finish()
            .map_err(Error::file("write", &self.partial))?;
        file.flush().map_err(Error::file("write", &self.partial))?;
        fs::rename(&self.partial, &self.to).map_err(Error::file("rename", &self.partial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_come_from_both_forms_of_a_line() {
        let text = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so (0x7f)\n";
        let found: Vec<_> = parse_ldd(text).into_iter().collect();
        assert_eq!(
            found,
            [
                PathBuf::from("/lib/libc.so.6"),
                PathBuf::from("/lib64/ld.so")
            ]
        );
        assert!(parse_ldd("\tstatically linked\n").is_empty());
    }
}
