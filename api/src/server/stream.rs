//! A client's connection: a Unix stream whose reads also take descriptors (SCM_RIGHTS), and whose writes give up on a
//! client that does not read.
//!
//! hyper reads bytes through it; the descriptors wait in an [`FdInbox`] until the request that they came with is read.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

/// Most descriptors that wait for a request; surplus ones are closed.
const INBOX_LIMIT: usize = 64;
/// The most that the kernel passes in one message (SCM_MAX_FD).
const MESSAGE_FDS: usize = 253;
/// Most bytes taken by one read.
const READ_LIMIT: usize = 16 << 10;

/// Descriptors that came with the bytes read so far.
#[derive(Clone, Default)]
pub(super) struct FdInbox(Arc<Mutex<Vec<OwnedFd>>>);

impl FdInbox {
    /// Takes all of them out.
    pub(super) fn take(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, fd: OwnedFd) {
        let mut fds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if fds.len() < INBOX_LIMIT {
            fds.push(fd);
        }
    }
}

/// A client's connection.
pub(super) struct ClientStream {
    stream: Arc<UnixStream>,
    inbox: FdInbox,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    /// Wraps `stream`; descriptors go to `inbox`, and a write that makes no progress for `write_timeout` fails.
    pub(super) fn new(stream: UnixStream, inbox: FdInbox, write_timeout: Duration) -> Self {
        Self {
            stream: Arc::new(stream),
            inbox,
            write_timeout,
            stalled: None,
        }
    }

    /// Tells whether the client has closed the connection, while nobody reads from it.
    pub(super) fn hangup(&self) -> Hangup {
        Hangup(Arc::clone(&self.stream))
    }

    fn write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = rustix::net::recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(bytes)],
            &mut control,
            flags,
        )?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                fds.for_each(|fd| self.inbox.put(fd));
            }
        }
        Ok(message.bytes)
    }

    /// Turns a write that waits for too long into an error.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        let timeout = self.write_timeout;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Watches for the end of a connection.
pub(super) struct Hangup(Arc<UnixStream>);

impl Hangup {
    /// Whether the client neither sends nor reads any more.
    pub(super) fn has_come(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok()
            && fds[0].revents().contains(PollFlags::HUP)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wanted = buffer.remaining().min(READ_LIMIT);
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            let bytes = buffer.initialize_unfilled_to(wanted);
            match self
                .stream
                .try_io(Interest::READABLE, || self.receive(bytes))
            {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = self.write(context, bytes);
        self.watch(context, write)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&self.stream, Shutdown::Write).map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::{FdInbox, INBOX_LIMIT};

    #[test]
    fn inbox_keeps_a_bounded_number_of_descriptors() {
        let inbox = FdInbox::default();
        let (stream, _other) = UnixStream::pair().expect("a pair");
        for _ in 0..INBOX_LIMIT + 10 {
            inbox.put(stream.try_clone().expect("a copy").into());
        }
        assert_eq!(inbox.take().len(), INBOX_LIMIT);
        assert!(inbox.take().is_empty());
    }
}
