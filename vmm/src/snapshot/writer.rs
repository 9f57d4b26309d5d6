//! Writes a snapshot directory.
//!
//! State and memory come from the thread that owns the writer, device streams from any thread meanwhile. The directory
//! becomes a snapshot by the rename of its manifest, after everything else is durable; a writer that is dropped before
//! removes what it wrote, and a crash leaves a directory without manifest, which the next writer cleans.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_api::config::{VmConfig, is_valid_id};
use dormouse_api::response::Timeline;
use dormouse_devices::lifecycle::{Quiesced, SavedState};
use serde_json::value::RawValue;

use super::check::check;
use super::checksum::Hasher;
use super::directory::{Directory, sync_file};
use super::error::WriteError;
use super::format::{
    self, MANIFEST_FILE, MAX_MANIFEST_BYTES, MAX_STATE_BYTES, MEMORY_FILE, Manifest, ManifestError,
    MemoryImage, PARTIAL_MANIFEST_FILE, STATE_FILE, Section,
};
use super::stream::{DeviceStream, Streams};
use crate::memory::{Observer, Ram, dump};

/// A snapshot that is being written.
#[derive(Debug)]
pub struct SnapshotWriter {
    directory: Arc<Directory>,
    /// Whether the directory was not there before.
    made: bool,
    state: Option<BufWriter<File>>,
    /// Whether a section of the state file broke off, so that nothing can follow it.
    state_broken: bool,
    sections: Vec<Section>,
    streams: Arc<Mutex<Streams>>,
    memory: Option<(File, MemoryImage)>,
    published: bool,
}

impl SnapshotWriter {
    /// Makes or opens `dir`, which must hold no snapshot and nothing foreign.
    ///
    /// What an interrupted snapshot left there is removed. Until the writer is finished or dropped no other may write to
    /// the directory.
    ///
    /// # Errors
    /// When the directory cannot be used; it is then as before.
    pub fn begin(dir: &Path) -> Result<Self, WriteError> {
        let open = |source| WriteError::OpenDirectory {
            dir: dir.to_owned(),
            source,
        };
        let made = Directory::make(dir).map_err(open)?;
        let directory = Directory::open(dir).map_err(open)?;
        if !directory.lock().map_err(open)? {
            return Err(WriteError::Busy {
                dir: dir.to_owned(),
            });
        }
        let entries = directory.entries().map_err(open)?;
        if entries.iter().any(|entry| entry.name == MANIFEST_FILE) {
            return Err(WriteError::HoldsSnapshot {
                dir: dir.to_owned(),
            });
        }
        if let Some(foreign) = entries
            .iter()
            .find(|entry| !entry.regular || !is_ours(&entry.name))
        {
            let path = directory.path_of(&foreign.name);
            return Err(WriteError::ForeignFile { path });
        }
        for entry in entries {
            directory
                .remove(&entry.name)
                .map_err(|source| WriteError::RemoveLeftover {
                    path: directory.path_of(&entry.name),
                    source,
                })?;
        }
        Ok(Self {
            directory: Arc::new(directory),
            made,
            state: None,
            state_broken: false,
            sections: Vec::new(),
            streams: Arc::default(),
            memory: None,
            published: false,
        })
    }

    /// Writes the state of one `S`; `instance` tells several of them apart and is empty where there can be one only.
    ///
    /// # Errors
    /// When it cannot be written, is beyond the limit of the format, or is there already.
    pub fn state<S: SavedState>(&mut self, instance: &str, state: &S) -> Result<(), WriteError> {
        let path = self.directory.path_of(STATE_FILE);
        let out = match &mut self.state {
            Some(out) => out,
            None => {
                let file =
                    self.directory
                        .create(STATE_FILE)
                        .map_err(|source| WriteError::Create {
                            path: path.clone(),
                            source,
                        })?;
                self.state.insert(BufWriter::new(file))
            }
        };
        let mut out = Measured {
            out,
            hasher: Hasher::new(),
            length: 0,
        };
        self.state_broken = true;
        serde_json::to_writer(&mut out, state).map_err(|source| {
            // A full disk is no fault of the state.
            if source.is_io() {
                return WriteError::Write {
                    path: path.clone(),
                    source: source.into(),
                };
            }
            WriteError::Encode {
                kind: S::KIND,
                instance: instance.to_owned(),
                source,
            }
        })?;
        // A line for each, so that ordinary tools can read the file.
        out.write_all(b"\n")
            .map_err(|source| WriteError::Write { path, source })?;
        self.state_broken = false;
        self.sections.push(Section {
            kind: S::KIND.to_owned(),
            instance: instance.to_owned(),
            version: S::VERSION,
            file: STATE_FILE.to_owned(),
            length: out.length,
            checksum: out.hasher.checksum(),
        });
        Ok(())
    }

    /// Opens the file for the stream of device `id`. Several may be written at once, each in its own thread.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn device_stream(&self, id: &str) -> Result<DeviceStream, WriteError> {
        DeviceStream::create(&self.directory, &self.streams, id)
    }

    /// Writes guest RAM: only pages that are in use and not zero. `observer` hears of every byte of RAM, in use or not.
    ///
    /// Returns the bytes written. They are on their way to the disk; [`Self::sync`] waits for them.
    ///
    /// # Errors
    /// When RAM cannot be examined or the file not be written, or the observer cancels.
    pub fn memory(
        &mut self,
        ram: &Ram,
        quiesced: &Quiesced,
        observer: &dyn Observer,
    ) -> Result<u64, WriteError> {
        let path = self.directory.path_of(MEMORY_FILE);
        let file = self
            .directory
            .create(MEMORY_FILE)
            .map_err(|source| WriteError::Create {
                path: path.clone(),
                source,
            })?;
        let dumped = dump(ram, &file, quiesced, observer)
            .map_err(|source| WriteError::Memory { path, source })?;
        self.memory = Some((file, dumped.image));
        Ok(dumped.written_bytes)
    }

    /// Waits until state and memory are on the disk. [`Self::finish`] does this too; it is apart so that the time it takes
    /// can stand in the timeline.
    ///
    /// # Errors
    /// When the disk reports an error.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        if let Some(state) = &mut self.state {
            state.flush().map_err(|source| WriteError::Write {
                path: self.directory.path_of(STATE_FILE),
                source,
            })?;
            self.sync_file(self.state.as_ref().map(BufWriter::get_ref), STATE_FILE)?;
        }
        self.sync_file(self.memory.as_ref().map(|(file, _)| file), MEMORY_FILE)
    }

    fn sync_file(&self, file: Option<&File>, name: &str) -> Result<(), WriteError> {
        let Some(file) = file else { return Ok(()) };
        sync_file(file, name).map_err(|source| WriteError::Sync {
            path: self.directory.path_of(name),
            source,
        })
    }

    /// Makes everything durable and then, by one rename, the directory a snapshot.
    ///
    /// # Errors
    /// When something was not written to its end, or the disk reports an error. The directory then holds no snapshot.
    pub fn finish(mut self, config: &VmConfig, timeline: &Timeline) -> Result<(), WriteError> {
        self.sync()?;
        let manifest = self.manifest(config, timeline)?;
        let bytes = encode(&manifest).map_err(WriteError::Manifest)?;
        let file = self
            .directory
            .create(PARTIAL_MANIFEST_FILE)
            .map_err(|source| WriteError::Create {
                path: self.directory.path_of(PARTIAL_MANIFEST_FILE),
                source,
            })?;
        (&file)
            .write_all(&bytes)
            .map_err(|source| WriteError::Write {
                path: self.directory.path_of(PARTIAL_MANIFEST_FILE),
                source,
            })?;
        self.sync_file(Some(&file), PARTIAL_MANIFEST_FILE)?;
        let sync_directory = |synced: io::Result<()>| {
            synced.map_err(|source| WriteError::Sync {
                path: self.directory.path().to_owned(),
                source,
            })
        };
        sync_directory(self.directory.sync())?;
        // Also when an earlier writer made it: that one may have died before it came here.
        sync_directory(self.directory.sync_parent())?;
        sync_directory(
            self.directory
                .rename(PARTIAL_MANIFEST_FILE, MANIFEST_FILE)
                .and_then(|()| self.directory.sync()),
        )?;
        self.published = true;
        Ok(())
    }

    fn manifest(&mut self, config: &VmConfig, timeline: &Timeline) -> Result<Manifest, WriteError> {
        let encode = |source| WriteError::Manifest(ManifestError::Encode(source));
        let config = serde_json::to_string(config)
            .and_then(RawValue::from_string)
            .map_err(encode)?;
        if self.state_broken {
            let missing = STATE_FILE.to_owned();
            return Err(WriteError::Incomplete { missing });
        }
        let (_, memory) = self.memory.as_ref().ok_or_else(|| WriteError::Incomplete {
            missing: "guest RAM".to_owned(),
        })?;
        let mut sections = self.sections.clone();
        let streams = self
            .streams
            .lock()
            .expect("no code panics while it holds this lock");
        sections.extend(
            streams
                .finished()
                .map_err(|missing| WriteError::Incomplete { missing })?,
        );
        Ok(Manifest {
            dormouse_version: env!("CARGO_PKG_VERSION").to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            created_unix_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            config,
            sections,
            memory: memory.clone(),
            timeline: timeline.clone(),
        })
    }
}

/// The manifest's bytes, as the reader will accept them: a snapshot that cannot be read must fail now.
fn encode(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    check(manifest)?;
    manifest.parse_config().map_err(ManifestError::Config)?;
    let bytes = format::render(manifest)?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(ManifestError::Field {
            field: "its length".to_owned(),
            value: bytes.len().to_string(),
            rule: "must be at most 64 MiB",
        });
    }
    Ok(bytes)
}

/// Whether a snapshot writes files of this name.
fn is_ours(name: &str) -> bool {
    let stream_id = || name.strip_prefix("vfio-")?.strip_suffix(".bin");
    matches!(name, STATE_FILE | MEMORY_FILE | PARTIAL_MANIFEST_FILE)
        || stream_id().is_some_and(is_valid_id)
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let entries = self.directory.entries().unwrap_or_default();
        // The manifest too: it has its name already if only the last sync failed.
        for entry in entries
            .iter()
            .filter(|entry| is_ours(&entry.name) || entry.name == MANIFEST_FILE)
        {
            if let Err(error) = self.directory.remove(&entry.name) {
                let path = self.directory.path_of(&entry.name);
                tracing::warn!(
                    "cannot remove {} of a failed snapshot: {error}",
                    path.display()
                );
            }
        }
        if self.made
            && let Err(error) = std::fs::remove_dir(self.directory.path())
        {
            let path = self.directory.path().display();
            tracing::warn!("cannot remove the directory {path} of a failed snapshot: {error}");
        }
    }
}

/// Measures and limits what passes through.
struct Measured<'a> {
    out: &'a mut BufWriter<File>,
    hasher: Hasher,
    length: u64,
}

impl Write for Measured<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length.saturating_add(bytes.len() as u64) > MAX_STATE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
