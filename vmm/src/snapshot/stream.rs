//! The file of one device's stream while a snapshot is written, and the book in which the writer keeps all of them.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use dormouse_api::config::is_valid_id;

use super::checksum::Hasher;
use super::directory::{Directory, sync_file};
use super::error::WriteError;
use super::format::{MAX_STREAM_BYTES, STREAM_KIND, STREAM_VERSION, Section, stream_file};

/// The streams of one snapshot: what is known of each when it has ended.
#[derive(Debug, Default)]
pub(super) struct Streams(Vec<(String, Option<Section>)>);

impl Streams {
    /// All of them in the order of their ids, or the file of one that has not ended.
    pub fn finished(&self) -> Result<Vec<Section>, String> {
        let mut sections = self
            .0
            .iter()
            .map(|(id, section)| section.clone().ok_or_else(|| stream_file(id)))
            .collect::<Result<Vec<_>, _>>()?;
        sections.sort_by(|a, b| a.instance.cmp(&b.instance));
        Ok(sections)
    }
}

/// The stream of a device on its way into a snapshot.
///
/// A snapshot cannot be finished while one of its streams was not.
#[derive(Debug)]
pub struct DeviceStream {
    file: File,
    id: String,
    hasher: Hasher,
    length: u64,
    directory: Arc<Directory>,
    streams: Arc<Mutex<Streams>>,
}

impl DeviceStream {
    pub(super) fn create(
        directory: &Arc<Directory>,
        streams: &Arc<Mutex<Streams>>,
        id: &str,
    ) -> Result<Self, WriteError> {
        let name = stream_file(id);
        let created = if is_valid_id(id) {
            directory.create(&name)
        } else {
            Err(io::ErrorKind::InvalidFilename.into())
        };
        let file = created.map_err(|source| WriteError::Create {
            path: directory.path_of(&name),
            source,
        })?;
        streams
            .lock()
            .expect("no code panics while it holds this lock")
            .0
            .push((id.to_owned(), None));
        Ok(Self {
            file,
            id: id.to_owned(),
            hasher: Hasher::new(),
            length: 0,
            directory: Arc::clone(directory),
            streams: Arc::clone(streams),
        })
    }

    /// Ends the stream and waits until it is on the disk.
    ///
    /// # Errors
    /// When the disk reports an error.
    pub fn finish(self) -> Result<Section, WriteError> {
        let name = stream_file(&self.id);
        sync_file(&self.file, &name).map_err(|source| WriteError::Sync {
            path: self.directory.path_of(&name),
            source,
        })?;
        let section = Section {
            kind: STREAM_KIND.to_owned(),
            instance: self.id.clone(),
            version: STREAM_VERSION,
            file: name,
            length: self.length,
            checksum: self.hasher.checksum(),
        };
        let mut streams = self
            .streams
            .lock()
            .expect("no code panics while it holds this lock");
        if let Some((_, slot)) = streams.0.iter_mut().find(|(id, _)| *id == self.id) {
            *slot = Some(section.clone());
        }
        Ok(section)
    }
}

impl Write for DeviceStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length.saturating_add(bytes.len() as u64) > MAX_STREAM_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
