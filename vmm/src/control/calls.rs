//! Requests on their way to the main loop: a short queue, so that clients hear at once that they would have to wait for long, and
//! one that nobody waits for is never begun.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_api::{ErrorStatus, Reply, Request};
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Remote, Shared, unavailable};

/// Requests that wait for the main loop at a time, besides the one that it is at.
pub const WAITING_LIMIT: usize = 8;

/// A request on its way to the main loop.
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Where the answer goes.
    pub reply: Reply,
    /// Its place among all requests of this process.
    pub(super) number: u64,
}

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
    closed: bool,
}

/// The queue between the API and the main loop.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Arc<EventFd>,
}

impl Queue {
    pub(super) fn new(wake: Arc<EventFd>) -> Self {
        Self {
            waiting: Mutex::default(),
            wake,
        }
    }

    /// Queues a request, or answers it at once when it would wait for too long or in vain.
    pub(super) fn push(&self, call: Call) {
        let mut waiting = self.waiting();
        waiting.calls.retain(|call| !call.reply.is_abandoned());
        let refusal = if waiting.closed {
            unavailable(ErrorStatus::Failed, &Error::Ending)
        } else if waiting.calls.len() >= WAITING_LIMIT {
            unavailable(ErrorStatus::TooManyRequests, &Error::Busy)
        } else {
            waiting.calls.push_back(call);
            drop(waiting);
            // Fails only when the counter is full, and then the loop is awake anyway.
            let _ = self.wake.write(1);
            return;
        };
        drop(waiting);
        call.reply.send(Err(refusal));
    }

    fn next(&self) -> Option<Call> {
        let mut waiting = self.waiting();
        while let Some(call) = waiting.calls.pop_front() {
            if !call.reply.is_abandoned() {
                return Some(call);
            }
        }
        None
    }

    fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        let calls = std::mem::take(&mut waiting.calls);
        drop(waiting);
        for call in calls {
            call.reply
                .send(Err(unavailable(ErrorStatus::Failed, &Error::Ending)));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that panics is done with it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving end, owned by the main loop. With its end every request is refused.
pub struct Calls(Arc<Remote>);

impl Calls {
    /// An empty queue that wakes the main loop through `wake`.
    #[must_use]
    pub fn new(wake: Arc<EventFd>) -> Self {
        Self(Arc::new(Remote {
            queue: Queue::new(wake),
            shared: Arc::default(),
        }))
    }

    /// What an API server calls.
    #[must_use]
    pub fn remote(&self) -> Arc<Remote> {
        Arc::clone(&self.0)
    }

    /// What is published to clients.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// The next request that somebody still waits for.
    #[must_use]
    pub fn next(&self) -> Option<Call> {
        let call = self.0.queue.next()?;
        self.0.shared.cancellation().take_up(call.number);
        Some(call)
    }

    /// Answers the requests that wait, and all that may still come, with the news that the VMM ends.
    pub fn close(&self) {
        self.0.queue.close();
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.close();
    }
}
