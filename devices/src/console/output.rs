//! Output from the guest to the host, which must never make the guest wait.
//!
//! Bytes go to the sink at once while it takes them. When it does not, they go to a backlog of
//! [`CAPACITY`] bytes that the main loop writes out as the sink becomes writable; when that is
//! full, the oldest bytes give way, since the newest are those that say why a guest died. vCPU
//! threads only count what is lost: a log line could block them as well as the console.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFlags, Timespec};
use rustix::io::Errno;

use super::host_fd::HostFd;
use super::wake::Wake;
use crate::host::SerialBackend;

/// Bytes that wait for a slow or absent reader.
pub(super) const CAPACITY: usize = 64 * 1024;

/// Bytes that are queued before the sink is tried.
const CHUNK: usize = 4096;

/// What happens to output while there is no sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unheard {
    /// It is gone, and that is not a loss.
    Discard,
    /// It waits in the backlog for the next sink.
    Keep,
}

/// What was lost since the last report.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) bytes: u64,
    /// Why a file did not take them; else it was the reader that was too slow.
    pub(super) error: Option<Errno>,
}

struct Inner {
    sink: Option<Arc<HostFd>>,
    backlog: VecDeque<u8>,
    /// The sink took nothing when last asked, and the main loop waits for it.
    blocked: bool,
    unheard: Unheard,
    unreported: u64,
    error: Option<Errno>,
}

impl Inner {
    /// What the main loop has to act upon: a sink to wait for, one to let go of, a loss to report.
    fn concerns(&self) -> (bool, bool, bool) {
        (self.blocked, self.sink.is_none(), self.unreported > 0)
    }
}

/// The way out of the guest.
pub(super) struct Output {
    inner: Mutex<Inner>,
    wake: Wake,
    dropped: AtomicU64,
}

impl Output {
    pub(super) fn new(sink: Option<Arc<HostFd>>, unheard: Unheard) -> Result<Self, Errno> {
        Ok(Self {
            inner: Mutex::new(Inner {
                sink,
                backlog: VecDeque::new(),
                blocked: false,
                unheard,
                unreported: 0,
                error: None,
            }),
            wake: Wake::new()?,
            dropped: AtomicU64::new(0),
        })
    }

    pub(super) fn wake(&self) -> &Wake {
        &self.wake
    }

    pub(super) fn dropped_bytes(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn sink(&self) -> Option<Arc<HostFd>> {
        self.inner().sink.clone()
    }

    /// The sink, if output waits for it to become writable.
    pub(super) fn blocked_on(&self) -> Option<Arc<HostFd>> {
        let inner = self.inner();
        inner.sink.clone().filter(|_| inner.blocked)
    }

    /// Connects the next reader, which gets the backlog first.
    pub(super) fn connect(&self, sink: Arc<HostFd>) {
        let mut inner = self.inner();
        inner.sink = Some(sink);
        self.write_out(&mut inner);
    }

    /// Lets go of `sink`, if output still goes there.
    pub(super) fn disconnect(&self, sink: &Arc<HostFd>) {
        let mut inner = self.inner();
        if inner
            .sink
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, sink))
        {
            inner.sink = None;
            inner.blocked = false;
        }
    }

    /// Tries again to write the backlog.
    pub(super) fn flush(&self) {
        self.write_out(&mut self.inner());
    }

    /// What was lost since this was last asked.
    pub(super) fn take_loss(&self) -> Option<Loss> {
        let mut inner = self.inner();
        let bytes = std::mem::take(&mut inner.unreported);
        let error = inner.error.take();
        (bytes > 0).then_some(Loss { bytes, error })
    }

    pub(super) fn drain(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            self.flush();
            let left = deadline.saturating_duration_since(Instant::now());
            let (Some(sink), false) = (self.blocked_on(), left.is_zero()) else {
                return;
            };
            let Ok(left) = Timespec::try_from(left) else {
                return;
            };
            // A signal or a time-out brings us back to the deadline above.
            let _interrupted = sink.wait(PollFlags::OUT, &left);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a chunk of at most [`CAPACITY`] bytes to the backlog, at the cost of the oldest.
    fn enqueue(&self, inner: &mut Inner, chunk: &[u8]) {
        let excess = (inner.backlog.len() + chunk.len()).saturating_sub(CAPACITY);
        inner.backlog.drain(..excess);
        inner.backlog.extend(chunk);
        self.count_lost(inner, excess);
    }

    fn count_lost(&self, inner: &mut Inner, lost: usize) {
        inner.unreported = inner.unreported.saturating_add(lost as u64);
        self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
    }

    fn write_out(&self, inner: &mut Inner) {
        inner.blocked = false;
        while let Some(sink) = &inner.sink {
            let chunk = match inner.backlog.as_slices() {
                ([], _) => return,
                (chunk, _) => chunk,
            };
            match sink.write(chunk) {
                Ok(0) | Err(Errno::AGAIN) => {
                    inner.blocked = true;
                    return;
                }
                Ok(len) => drop(inner.backlog.drain(..len)),
                Err(Errno::INTR) => (),
                Err(error) if sink.survives_errors() => {
                    let lost = inner.backlog.len();
                    inner.backlog.clear();
                    inner.error = Some(error);
                    self.count_lost(inner, lost);
                    return;
                }
                Err(_) => {
                    inner.sink = None;
                    if inner.unheard == Unheard::Discard {
                        inner.backlog = VecDeque::new();
                    }
                }
            }
        }
    }
}

impl SerialBackend for Output {
    fn transmit(&self, bytes: &[u8]) {
        let mut inner = self.inner();
        if inner.sink.is_none() && inner.unheard == Unheard::Discard {
            return;
        }
        let before = inner.concerns();
        for chunk in bytes.chunks(CHUNK) {
            self.enqueue(&mut inner, chunk);
            // While it is blocked only the main loop tries, so that a guest which writes on does
            // not pay for a futile system call with each byte.
            if !inner.blocked {
                self.write_out(&mut inner);
            }
        }
        if inner.concerns() != before {
            self.wake.set();
        }
    }

    fn input_room(&self) {
        self.wake.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn slow_reader() -> (Output, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sink = Arc::new(HostFd::socket(OwnedFd::from(ours)));
        (Output::new(Some(sink), Unheard::Keep).unwrap(), theirs)
    }

    #[test]
    fn a_reader_that_never_reads_costs_the_oldest_of_the_backlog() {
        let (output, mut reader) = slow_reader();
        let text: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        for chunk in text.chunks(1000) {
            output.transmit(chunk);
        }
        assert!(output.blocked_on().is_some());
        let lost = output.dropped_bytes();
        assert!(lost > 0);
        assert_eq!(
            output.take_loss(),
            Some(Loss {
                bytes: lost,
                error: None
            })
        );
        assert_eq!(output.take_loss(), None);

        let mut got = Vec::new();
        let mut chunk = [0; 4096];
        reader.set_nonblocking(true).unwrap();
        loop {
            while let Ok(len @ 1..) = reader.read(&mut chunk) {
                got.extend_from_slice(&chunk[..len]);
            }
            if output.blocked_on().is_none() {
                break;
            }
            output.flush();
        }
        assert_eq!(got.len() as u64 + lost, text.len() as u64);
        assert_eq!(got[got.len() - CAPACITY..], text[text.len() - CAPACITY..]);
        assert_eq!(got[..1000], text[..1000]);
    }

    #[test]
    fn one_huge_write_keeps_its_end() {
        let output = Output::new(None, Unheard::Keep).unwrap();
        output.transmit(&[b'a'; CAPACITY]);
        let mut text = vec![b'b'; CAPACITY + 5];
        text.extend(b"end");
        output.transmit(&text);
        assert_eq!(output.dropped_bytes(), (CAPACITY + 8) as u64);
        assert!(
            output.inner().backlog.iter().rev().eq(b"dne"
                .iter()
                .chain(std::iter::repeat_n(&b'b', CAPACITY - 3)))
        );
    }

    #[test]
    fn output_waits_for_a_reader_where_one_can_come() {
        let output = Output::new(None, Unheard::Keep).unwrap();
        output.transmit(b"early ");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        output.connect(Arc::new(HostFd::socket(OwnedFd::from(ours))));
        output.transmit(b"late");
        drop(output);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early late");
    }

    #[test]
    fn a_reader_that_goes_away_is_dropped_and_nothing_is_lost_where_the_next_can_come() {
        let (output, reader) = slow_reader();
        drop(reader);
        output.transmit(b"unheard");
        assert!(output.sink().is_none());
        assert_eq!(output.inner().backlog.len(), 7);
        assert_eq!(output.dropped_bytes(), 0);
    }

    #[test]
    fn a_full_disk_is_counted_and_the_file_used_again() {
        // A file whose size limit is reached fails like a full disk; /dev/full fails always.
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let sink = HostFd::regular_for_test(OwnedFd::from(full));
        let output = Output::new(Some(Arc::new(sink)), Unheard::Discard).unwrap();
        output.transmit(b"abc");
        output.transmit(b"de");
        assert_eq!(
            output.take_loss(),
            Some(Loss {
                bytes: 5,
                error: Some(Errno::NOSPC)
            })
        );
        assert!(output.sink().is_some());
    }

    #[test]
    fn drain_gives_up_at_its_limit() {
        let (output, _reader) = slow_reader();
        output.transmit(&vec![0; 1 << 20]);
        assert!(output.blocked_on().is_some());
        let start = Instant::now();
        output.drain(Duration::from_millis(50));
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(50) && took < Duration::from_secs(5));
    }
}
