//! Checks the bytes of a snapshot against their checksums.
//!
//! State and streams are checked before every restore; memory on request, and by the restores that read all of it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::checksum::{Checksum, Hasher};
use super::error::ReadError;
use super::format::{CHUNK_BYTES, STREAM_KIND};
use super::reader::Snapshot;
use crate::memory::parallel::each_unit;
use crate::memory::{Observer, data_ranges};

/// Bytes of a stream held in memory.
const BUFFER_BYTES: usize = 256 << 10;

impl Snapshot {
    /// Checks state and device streams.
    ///
    /// # Errors
    /// The first damage, or that the observer cancelled.
    pub fn verify_state_and_streams(&self, observer: &dyn Observer) -> Result<(), ReadError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        for (index, section) in self.manifest().sections.iter().enumerate() {
            if observer.is_cancelled() {
                return Err(ReadError::Cancelled);
            }
            if section.kind != STREAM_KIND {
                self.read_state(index)?;
                observer.advance(section.length);
                continue;
            }
            let mut stream = self.open_stream(index, Arc::default())?;
            loop {
                if observer.is_cancelled() {
                    return Err(ReadError::Cancelled);
                }
                let read = stream.read(&mut buffer);
                match read.map_err(|source| self.stream_error(&section.file, source))? {
                    0 => break,
                    count => observer.advance(count as u64),
                }
            }
        }
        Ok(())
    }

    /// Checks everything: [`Self::verify_state_and_streams`], and each chunk of memory.
    ///
    /// # Errors
    /// The first damage, or that the observer cancelled.
    pub fn verify_all(&self, observer: &dyn Observer) -> Result<(), ReadError> {
        self.verify_state_and_streams(observer)?;
        let (_, image) = self.memory();
        each_unit(
            image.chunks(),
            || vec![0; CHUNK_BYTES as usize],
            |buffer, chunk| {
                if observer.is_cancelled() {
                    return Err(ReadError::Cancelled);
                }
                self.verify_chunk(chunk, buffer)?;
                let range = image.chunk_range(chunk);
                observer.advance(range.end - range.start);
                Ok(())
            },
        )
        .map(|_| ())
    }

    fn verify_chunk(&self, chunk: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let (file, image) = self.memory();
        let range = image.chunk_range(chunk);
        let recorded = image.checksum(chunk);
        let intact = chunk_is_intact(file, range.clone(), recorded, buffer).map_err(|source| {
            ReadError::Read {
                path: self.memory_path(),
                source,
            }
        })?;
        if intact {
            return Ok(());
        }
        Err(ReadError::Damaged {
            path: self.memory_path(),
            range,
        })
    }

    /// An error from reading a stream: damage, or the kernel's answer.
    fn stream_error(&self, file: &str, source: io::Error) -> ReadError {
        match source.downcast::<ReadError>() {
            Ok(damage) => damage,
            Err(source) => ReadError::Read {
                path: self.dir().join(file),
                source,
            },
        }
    }
}

/// Whether the bytes of a chunk have the recorded checksum, or are zero if none is recorded. `buffer` has room for a chunk.
pub(crate) fn chunk_is_intact(
    file: &File,
    range: Range<u64>,
    recorded: Option<Checksum>,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let Some(recorded) = recorded else {
        return is_zero(file, range, buffer);
    };
    let mut hasher = Hasher::new();
    let mut position = range.start;
    for data in data_ranges(file, range.clone())? {
        let bytes = &mut buffer[..(data.end - data.start) as usize];
        file.read_exact_at(bytes, data.start)?;
        hasher.update_zeros((data.start - position) as usize);
        hasher.update(bytes);
        position = data.end;
    }
    hasher.update_zeros((range.end - position) as usize);
    Ok(hasher.checksum() == recorded)
}

fn is_zero(file: &File, range: Range<u64>, buffer: &mut [u8]) -> io::Result<bool> {
    for data in data_ranges(file, range)? {
        let bytes = &mut buffer[..(data.end - data.start) as usize];
        file.read_exact_at(bytes, data.start)?;
        if bytes.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
