//! Copies a device's state between its data descriptor and a file, in one bounded buffer.
//!
//! The buffer is filled before it is passed on, so that the other side sees few, large and aligned
//! pieces however small the driver's reads are. What may be tried again and what ends the session
//! is the driver's business: reads that answer EINTR, EAGAIN or ENOMSG lost nothing, a write that
//! fails or falls short is final. Called by the sessions.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::DataFd;
use crate::sys::signals::BlockedSignals;

/// Bytes per piece.
pub const BUFFER_BYTES: usize = 1 << 20;
/// Pieces start at a page, which suits the kernel's copy and files opened with O_DIRECT.
const BUFFER_ALIGN: usize = 4096;
/// How long one poll may keep a cancelled stream waiting.
const POLL_SLICE: Duration = Duration::from_millis(100);
/// The pause when a driver says "not now" and poll says "ready" (most do not implement poll).
const UNPOLLED_PAUSE: Duration = Duration::from_millis(1);

/// A stream that broke off. Offsets are bytes from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The device failed a read.
    #[error("the device failed to give its state at byte {offset}")]
    DeviceRead {
        /// Where.
        offset: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The device had nothing to read for too long.
    #[error("the device gave no state at byte {offset} for {waited:?}")]
    Stalled {
        /// Where.
        offset: u64,
        /// For how long.
        waited: Duration,
    },
    /// Reads were interrupted again and again.
    #[error("reading the device's state at byte {offset} was interrupted {times} times")]
    Interrupted {
        /// Where.
        offset: u64,
        /// How often in a row.
        times: u32,
    },
    /// The device does not stop giving state.
    #[error(
        "the device's state is longer than the {limit} bytes allowed; raise the limit if it is"
    )]
    TooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// What the device gave could not be stored.
    #[error("cannot store the device's state at byte {offset}")]
    Store {
        /// Where.
        offset: u64,
        /// The writer's answer.
        #[source]
        source: io::Error,
    },
    /// The saved state could not be read.
    #[error("cannot read the saved state at byte {offset}")]
    Fetch {
        /// Where.
        offset: u64,
        /// The reader's answer.
        #[source]
        source: io::Error,
    },
    /// The saved state is shorter than it should be.
    #[error("the saved state ends at byte {found} of {expected}")]
    Truncated {
        /// Bytes that should be there.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The saved state should be empty.
    #[error("the saved state should be empty and is not")]
    NotEmpty,
    /// The device refused a write.
    #[error("the device refused the saved state at byte {offset}; was it saved on another model?")]
    DeviceWrite {
        /// Where the refused piece starts.
        offset: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The device took less than it was given.
    #[error("the device took {taken} of {given} bytes of the saved state at byte {offset}")]
    ShortWrite {
        /// Where the piece starts.
        offset: u64,
        /// Its length in bytes.
        given: usize,
        /// Bytes taken.
        taken: usize,
    },
    /// The caller cancelled.
    #[error("it was cancelled at byte {offset}")]
    Cancelled {
        /// Where.
        offset: u64,
    },
}

/// How much patience a stream deserves.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// The longest state to accept from a device, in bytes.
    pub max_bytes: u64,
    /// The longest time without a byte.
    pub max_stall: Duration,
    /// Interrupted reads in a row.
    pub max_interrupts: u32,
}

impl Default for StreamLimits {
    /// 64 GiB, 30 s and 1000.
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_stall: Duration::from_secs(30),
            max_interrupts: 1000,
        }
    }
}

/// The caller's hold on a stream under way.
#[derive(Default)]
pub struct StreamControl<'a> {
    /// When to give up.
    pub limits: StreamLimits,
    /// Looked at before each read and each piece; true ends the stream with an error.
    pub cancel: Option<&'a AtomicBool>,
    /// Told the bytes done so far, after each piece.
    pub progress: Option<&'a mut (dyn FnMut(u64) + Send)>,
}

impl StreamControl<'_> {
    fn check_cancelled(&self, offset: u64) -> Result<(), StreamError> {
        match self.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => {
                Err(StreamError::Cancelled { offset })
            }
            _ => Ok(()),
        }
    }

    fn report(&mut self, bytes: u64) {
        if let Some(progress) = self.progress.as_mut() {
            progress(bytes);
        }
    }
}

/// [`BUFFER_BYTES`] that start at a page.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; BUFFER_BYTES + BUFFER_ALIGN];
        let start = bytes.as_ptr().align_offset(BUFFER_ALIGN).min(BUFFER_ALIGN);
        Self { bytes, start }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BUFFER_BYTES]
    }
}

/// Copies from a device in STOP_COPY until its end; returns the bytes copied.
pub(crate) fn drain(
    data: &mut dyn DataFd,
    sink: &mut dyn Write,
    control: &mut StreamControl<'_>,
) -> Result<u64, StreamError> {
    let mut buffer = Buffer::new();
    let buffer = buffer.as_mut();
    let mut done = 0;
    loop {
        let (filled, at_end) = fill_from_device(data, buffer, done, control)?;
        sink.write_all(&buffer[..filled])
            .map_err(|source| StreamError::Store {
                offset: done,
                source,
            })?;
        done += filled as u64;
        control.report(done);
        if at_end {
            break;
        }
    }
    sink.flush().map_err(|source| StreamError::Store {
        offset: done,
        source,
    })?;
    Ok(done)
}

/// Fills the buffer; true when the device has no more.
fn fill_from_device(
    data: &mut dyn DataFd,
    buffer: &mut [u8],
    start: u64,
    control: &StreamControl<'_>,
) -> Result<(usize, bool), StreamError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let offset = start + filled as u64;
        let room = &mut buffer[filled..];
        let longest = room.len();
        match read_patiently(data, room, offset, control)?.min(longest) {
            0 => return Ok((filled, true)),
            bytes => filled += bytes,
        }
        let limit = control.limits.max_bytes;
        if start + filled as u64 > limit {
            return Err(StreamError::TooLong { limit });
        }
    }
    Ok((filled, false))
}

/// One read that gave bytes or the end, with the answers that lost nothing repeated.
fn read_patiently(
    data: &mut dyn DataFd,
    room: &mut [u8],
    offset: u64,
    control: &StreamControl<'_>,
) -> Result<usize, StreamError> {
    let limits = control.limits;
    let mut interrupts = 0;
    let mut stalled_since: Option<Instant> = None;
    loop {
        control.check_cancelled(offset)?;
        let source = match data.read(room) {
            Ok(bytes) => return Ok(bytes),
            Err(source) => source,
        };
        match source.raw_os_error() {
            Some(libc::EINTR) => {
                interrupts += 1;
                if interrupts > limits.max_interrupts {
                    let times = interrupts;
                    return Err(StreamError::Interrupted { offset, times });
                }
            }
            Some(libc::EAGAIN | libc::ENOMSG) => {
                let waited = stalled_since.get_or_insert_with(Instant::now).elapsed();
                if waited > limits.max_stall {
                    return Err(StreamError::Stalled { offset, waited });
                }
                wait(data, offset)?;
            }
            _ => return Err(StreamError::DeviceRead { offset, source }),
        }
    }
}

fn wait(data: &dyn DataFd, offset: u64) -> Result<(), StreamError> {
    let asked = Instant::now();
    data.wait_readable(POLL_SLICE)
        .map_err(|source| StreamError::DeviceRead { offset, source })?;
    if asked.elapsed() < UNPOLLED_PAUSE {
        thread::sleep(UNPOLLED_PAUSE);
    }
    Ok(())
}

/// Copies exactly `length` bytes to a device in RESUMING. Any error is final for the session.
pub(crate) fn fill(
    data: &mut dyn DataFd,
    source: &mut dyn Read,
    length: u64,
    control: &mut StreamControl<'_>,
) -> Result<(), StreamError> {
    if length == 0 {
        return expect_end(source);
    }
    let mut buffer = Buffer::new();
    let mut done = 0;
    while done < length {
        let left = usize::try_from(length - done).unwrap_or(usize::MAX);
        let piece = &mut buffer.as_mut()[..left.min(BUFFER_BYTES)];
        fetch(source, piece, done, length, control)?;
        give_to_device(data, piece, done)?;
        done += piece.len() as u64;
        control.report(done);
    }
    Ok(())
}

/// The one read that an empty state gets: a source that checks what it gives does so when it is read to its end.
fn expect_end(source: &mut dyn Read) -> Result<(), StreamError> {
    loop {
        match source.read(&mut [0]) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(StreamError::NotEmpty),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(StreamError::Fetch { offset: 0, source }),
        }
    }
}

fn fetch(
    source: &mut dyn Read,
    piece: &mut [u8],
    start: u64,
    length: u64,
    control: &StreamControl<'_>,
) -> Result<(), StreamError> {
    let mut filled = 0;
    while filled < piece.len() {
        let offset = start + filled as u64;
        control.check_cancelled(offset)?;
        let room = &mut piece[filled..];
        let longest = room.len();
        match source.read(room) {
            Ok(0) => {
                return Err(StreamError::Truncated {
                    expected: length,
                    found: offset,
                });
            }
            Ok(bytes) => filled += bytes.min(longest),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(StreamError::Fetch { offset, source }),
        }
    }
    Ok(())
}

fn give_to_device(data: &mut dyn DataFd, piece: &[u8], offset: u64) -> Result<(), StreamError> {
    let _quiet = BlockedSignals::new();
    let taken = data
        .write(piece)
        .map_err(|source| StreamError::DeviceWrite { offset, source })?;
    if taken == piece.len() {
        return Ok(());
    }
    Err(StreamError::ShortWrite {
        offset,
        given: piece.len(),
        taken,
    })
}
