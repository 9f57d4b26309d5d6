//! The one directory that a snapshot lives in, held open: every file in it is reached through its descriptor.
//!
//! So a directory that is moved or replaced meanwhile cannot mix two snapshots, and no name leads anywhere else: links
//! are not followed, and what is no regular file is not opened for reading. Writers hold a lock on it, which ends with
//! the process. In tests every change is a step that can be recorded, and that can kill the process (`steps`).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::steps::{Step, step};

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// A name in a directory.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// Whether it is a regular file.
    pub regular: bool,
}

impl Directory {
    /// Makes `path` if it is not there, for its owner only. Says whether it did.
    pub fn make(path: &Path) -> io::Result<bool> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// Where `name` is, for messages.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps other writers away; false if there is one already.
    pub fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Everything in it; a name that is no UTF-8 has its foreign bytes replaced.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries.push(Entry {
                name: name.to_string_lossy().into_owned(),
                regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            });
        }
        Ok(entries)
    }

    /// Creates a file that is not there yet, for its owner only.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        step(Step::Create, name);
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(File::from(fd))
    }

    /// Opens a regular file for reading, with its length; none if there is no such name.
    ///
    /// A link, a pipe or a device is an error of the kind `InvalidInput`.
    pub fn read(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        // Opening a pipe for reading would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(io::ErrorKind::InvalidInput.into()),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Some((file, metadata.len())))
    }

    /// Gives a file another name, in one step.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        step(Step::Rename, to);
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        step(Step::Remove, name);
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Makes its names durable.
    pub fn sync(&self) -> io::Result<()> {
        step(Step::Sync, ".");
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Makes its own name durable in the directory that it is in.
    pub fn sync_parent(&self) -> io::Result<()> {
        step(Step::Sync, "..");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(&self.fd, "..", flags, Mode::empty())?;
        Ok(rustix::fs::fsync(parent)?)
    }
}

/// Makes a file's content durable.
pub fn sync_file(file: &File, name: &str) -> io::Result<()> {
    step(Step::Sync, name);
    file.sync_all()
}
