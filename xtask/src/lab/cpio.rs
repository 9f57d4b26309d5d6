//! Writes the "newc" cpio format that the kernel unpacks as an initramfs.
//!
//! Format: `Documentation/driver-api/early-userspace/buffer-format.rst` in the kernel tree. Files are written
//! uncompressed, because packing happens before every test and emulated unpacking costs more than copying.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive being written. Parent directories are added by themselves; names are relative to `/`.
pub struct Archive<W: Write> {
    out: W,
    entries: u32,
    names: BTreeSet<PathBuf>,
    written: u64,
}

impl<W: Write> Archive<W> {
    /// An empty archive that goes to `out`.
    pub fn new(out: W) -> Archive<W> {
        Archive {
            out,
            entries: 0,
            names: BTreeSet::new(),
            written: 0,
        }
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        let path = PathBuf::from(name.trim_matches('/'));
        self.parents(&path)?;
        if self.names.insert(path.clone()) {
            self.entry(&path, DIRECTORY | 0o755, 0)?;
        }
        Ok(())
    }

    /// Adds a file with these contents and permission bits. A name that is there already is left alone.
    pub fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        let path = PathBuf::from(name.trim_start_matches('/'));
        self.parents(&path)?;
        if self.names.insert(path.clone()) {
            self.entry(&path, REGULAR | permissions, contents.len() as u64)?;
            self.put(contents)?;
            self.align()?;
        }
        Ok(())
    }

    /// Adds a copy of a file of the host.
    pub fn copy(&mut self, name: &str, permissions: u32, from: &Path) -> io::Result<()> {
        let mut contents = Vec::new();
        File::open(from)?.read_to_end(&mut contents)?;
        self.file(name, permissions, &contents)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        let path = PathBuf::from(name.trim_start_matches('/'));
        self.parents(&path)?;
        if self.names.insert(path.clone()) {
            self.entry(&path, SYMLINK | 0o777, target.len() as u64)?;
            self.put(target.as_bytes())?;
            self.align()?;
        }
        Ok(())
    }

    /// Writes the trailer and hands the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let mut parents: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
            .collect();
        parents.reverse();
        for parent in parents {
            if self.names.insert(parent.to_path_buf()) {
                self.entry(parent, DIRECTORY | 0o755, 0)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, size: u64) -> io::Result<()> {
        let size = u32::try_from(size)
            .map_err(|_| io::Error::other("a cpio file holds less than 4 GiB"))?;
        let name = path.as_os_str().as_encoded_bytes();
        self.entries += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name length, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        let header = fields.iter().fold("070701".to_string(), |text, field| {
            text + &format!("{field:08x}")
        });
        self.put(header.as_bytes())?;
        self.put(name)?;
        self.put(&[0])?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = (4 - self.written % 4) % 4;
        self.put(&[0; 3][..padding as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_first_and_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/sh", 0o755, b"abcde").unwrap();
        archive.file("bin/ls", 0o755, b"").unwrap();
        archive.directory("/proc").unwrap();
        let bytes = archive.finish().unwrap();
        let names = walk(&bytes);
        assert_eq!(names, ["bin", "bin/sh", "bin/ls", "proc", "TRAILER!!!"]);
    }

    /// Reads an archive as the kernel does: header, name and contents each padded to four bytes.
    fn walk(bytes: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701", "no header at {at}");
            let field = |index: usize| {
                let from = at + 6 + 8 * index;
                let digits = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_len) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_len - 1];
            names.push(String::from_utf8(name.to_vec()).unwrap());
            at = (at + 110 + name_len).next_multiple_of(4);
            at = (at + size).next_multiple_of(4);
        }
        names
    }
}
