//! The stream of one device on its way back into it.
//!
//! Checked again while it is read, although a restore verifies all streams first: the file may change in between. The last
//! byte is handed out only after the checksum of all of them was right.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::checksum::{Checksum, Hasher};
use super::error::ReadError;
use super::format::Section;

/// Reads one device's stream; ends after its recorded length.
#[derive(Debug)]
pub struct DeviceStreamReader {
    file: File,
    path: PathBuf,
    position: u64,
    length: u64,
    recorded: Checksum,
    hasher: Hasher,
    taken: Arc<AtomicBool>,
}

impl DeviceStreamReader {
    pub(super) fn new(
        file: File,
        path: PathBuf,
        section: &Section,
        taken: Arc<AtomicBool>,
    ) -> Self {
        Self {
            file,
            path,
            position: 0,
            length: section.length,
            recorded: section.checksum,
            hasher: Hasher::new(),
            taken,
        }
    }

    /// Bytes of the stream.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    fn check_end(&self) -> io::Result<()> {
        if self.hasher.checksum() != self.recorded {
            let damage = ReadError::Damaged {
                path: self.path.clone(),
                range: 0..self.length,
            };
            return Err(io::Error::new(io::ErrorKind::InvalidData, damage));
        }
        self.taken.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Read for DeviceStreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length - self.position;
        if left == 0 {
            self.check_end()?;
            return Ok(0);
        }
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buffer[..count]);
        self.position += count as u64;
        if self.position == self.length {
            self.check_end()?;
        }
        Ok(count)
    }
}
