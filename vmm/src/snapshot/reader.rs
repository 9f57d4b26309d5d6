//! Opens a snapshot directory and hands out what is in it.
//!
//! Opening reads the manifest and nothing else, but opens every file and compares its length, so that later steps work on
//! the files that were checked. Each section is checked again as it is handed out. Whoever restores says at the end that
//! everything was taken ([`Snapshot::finish`]): a section that nobody takes is a part of the VM that would be lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_api::config::VmConfig;
use dormouse_devices::lifecycle::SavedState;

use super::check::check;
use super::checksum::Checksum;
use super::directory::Directory;
use super::error::ReadError;
use super::format::{
    self, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, ManifestError, MemoryImage, STREAM_KIND,
    Section,
};
use super::source::DeviceStreamReader;

/// An open snapshot.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
    config: VmConfig,
    /// Where each section is in its file, in the manifest's order.
    offsets: Vec<u64>,
    /// Which sections were taken, in the same order.
    taken: Vec<Arc<AtomicBool>>,
    files: BTreeMap<String, File>,
}

impl Snapshot {
    /// Opens the snapshot in `dir`.
    ///
    /// # Errors
    /// When there is none, its manifest is damaged or says something impossible, or a file is missing or has another
    /// length. The bytes of the files are not read.
    pub fn open(dir: &Path) -> Result<Self, ReadError> {
        let directory = Directory::open(dir).map_err(|source| ReadError::Read {
            path: dir.to_owned(),
            source,
        })?;
        let manifest = read_manifest(&directory)?;
        let unusable = |source| ReadError::Manifest {
            path: directory.path_of(MANIFEST_FILE),
            source,
        };
        check(&manifest).map_err(unusable)?;
        let config = manifest
            .parse_config()
            .map_err(|source| unusable(ManifestError::Config(source)))?;
        // Without a section in it there is no such file.
        let mut lengths = BTreeMap::from([(manifest.memory.file.as_str(), manifest.memory.length)]);
        let mut offsets = Vec::with_capacity(manifest.sections.len());
        for section in &manifest.sections {
            let length = lengths.entry(section.file.as_str()).or_default();
            offsets.push(*length);
            *length += section.length;
        }
        let files = lengths
            .into_iter()
            .map(|(name, length)| Ok((name.to_owned(), open_file(&directory, name, length)?)))
            .collect::<Result<_, ReadError>>()?;
        Ok(Self {
            dir: dir.to_owned(),
            taken: offsets.iter().map(|_| Arc::default()).collect(),
            manifest,
            config,
            offsets,
            files,
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the snapshot holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The config of the VM that was put to sleep. It was read, and not validated against this host.
    #[must_use]
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Bytes of all states and device streams.
    #[must_use]
    pub fn section_bytes(&self) -> u64 {
        let sections = self.manifest().sections.iter();
        sections.map(|section| section.length).sum()
    }

    /// The memory file and what is in it.
    #[must_use]
    pub fn memory(&self) -> (&File, &MemoryImage) {
        let image = &self.manifest.memory;
        (&self.files[&image.file], image)
    }

    /// Where the memory file is, for messages.
    #[must_use]
    pub fn memory_path(&self) -> PathBuf {
        self.dir.join(&self.manifest.memory.file)
    }

    /// The instances of `kind`, in the order in which they were written.
    pub fn instances<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        let of_kind = self.manifest.sections.iter();
        of_kind
            .filter(move |section| section.kind == kind)
            .map(|section| section.instance.as_str())
    }

    /// The ids of the devices that have a stream.
    pub fn stream_ids(&self) -> impl Iterator<Item = &str> {
        self.instances(STREAM_KIND)
    }

    /// The state of the `S` called `instance`, checked against its checksum. Counts as taken.
    ///
    /// # Errors
    /// When there is none, it has another version, is damaged, or is no `S`.
    pub fn state<S: SavedState>(&self, instance: &str) -> Result<S, ReadError> {
        let index = self.find(S::KIND, instance)?;
        let section = &self.manifest.sections[index];
        if section.version != S::VERSION {
            return Err(ReadError::SectionVersion {
                kind: section.kind.clone(),
                instance: section.instance.clone(),
                found: section.version,
                supported: S::VERSION,
            });
        }
        let bytes = self.read_state(index)?;
        let state = serde_json::from_slice(&bytes).map_err(|source| ReadError::Decode {
            kind: section.kind.clone(),
            instance: section.instance.clone(),
            source,
        })?;
        self.taken[index].store(true, Ordering::Relaxed);
        Ok(state)
    }

    /// The stream of device `id`, as long as it was, checked as it is read. Counts as taken when read to its end.
    ///
    /// # Errors
    /// When there is none, or its file cannot be used any more.
    pub fn device_stream(&self, id: &str) -> Result<DeviceStreamReader, ReadError> {
        let index = self.find(STREAM_KIND, id)?;
        self.open_stream(index, Arc::clone(&self.taken[index]))
    }

    /// The stream that is the section `index`; `taken` is set when it was read to its end.
    pub(super) fn open_stream(
        &self,
        index: usize,
        taken: Arc<AtomicBool>,
    ) -> Result<DeviceStreamReader, ReadError> {
        let section = &self.manifest.sections[index];
        let path = self.dir.join(&section.file);
        let cloned = self.files[&section.file].try_clone();
        match cloned {
            Ok(file) => Ok(DeviceStreamReader::new(file, path, section, taken)),
            Err(source) => Err(ReadError::Read { path, source }),
        }
    }

    /// Gives the snapshot back, after a restore.
    ///
    /// # Errors
    /// The first section that was not taken.
    pub fn finish(self) -> Result<(), ReadError> {
        let mut sections = self.manifest.sections.iter().zip(&self.taken);
        match sections.find(|(_, taken)| !taken.load(Ordering::Relaxed)) {
            None => Ok(()),
            Some((section, _)) => Err(ReadError::Unconsumed {
                kind: section.kind.clone(),
                instance: section.instance.clone(),
            }),
        }
    }

    fn find(&self, kind: &str, instance: &str) -> Result<usize, ReadError> {
        self.manifest
            .sections
            .iter()
            .position(|section| section.kind == kind && section.instance == instance)
            .ok_or_else(|| ReadError::MissingSection {
                dir: self.dir.clone(),
                kind: kind.to_owned(),
                instance: instance.to_owned(),
            })
    }

    /// The bytes of a section of the state file, whose length `check` has limited.
    pub(super) fn read_state(&self, index: usize) -> Result<Vec<u8>, ReadError> {
        let section: &Section = &self.manifest.sections[index];
        let path = || self.dir.join(&section.file);
        let start = self.offsets[index];
        let mut bytes = vec![0; section.length as usize];
        self.files[&section.file]
            .read_exact_at(&mut bytes, start)
            .map_err(|source| ReadError::Read {
                path: path(),
                source,
            })?;
        if Checksum::of(&bytes) != section.checksum {
            return Err(ReadError::Damaged {
                path: path(),
                range: start..start + section.length,
            });
        }
        Ok(bytes)
    }
}

fn read_manifest(directory: &Directory) -> Result<Manifest, ReadError> {
    let path = || directory.path_of(MANIFEST_FILE);
    let (file, length) =
        open_regular(directory, MANIFEST_FILE)?.ok_or_else(|| ReadError::NoSnapshot {
            dir: directory.path().to_owned(),
        })?;
    if length > MAX_MANIFEST_BYTES {
        return Err(ReadError::Length {
            path: path(),
            recorded: MAX_MANIFEST_BYTES,
            found: length,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| ReadError::Read {
            path: path(),
            source,
        })?;
    format::parse(&bytes).map_err(|source| ReadError::Manifest {
        path: path(),
        source,
    })
}

fn open_file(directory: &Directory, name: &str, recorded: u64) -> Result<File, ReadError> {
    let path = directory.path_of(name);
    match open_regular(directory, name)? {
        None => Err(ReadError::MissingFile { path }),
        Some((_, found)) if found != recorded => Err(ReadError::Length {
            path,
            recorded,
            found,
        }),
        Some((file, _)) => Ok(file),
    }
}

fn open_regular(directory: &Directory, name: &str) -> Result<Option<(File, u64)>, ReadError> {
    let path = directory.path_of(name);
    directory.read(name).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidInput => ReadError::NotRegular { path },
        _ => ReadError::Read { path, source },
    })
}
