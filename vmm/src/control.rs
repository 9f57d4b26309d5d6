//! How API clients reach the main loop: a `Backend` that answers what it can at once and queues the rest.
//!
//! `vm.info`, `vm.progress` and `vm.cancel` never wait for the main loop: they read and write what the loop publishes in `Shared`.

mod calls;
mod cancellation;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_api::response::{Counters, PingInfo, Progress, VmInfo};
use dormouse_api::{ApiError, Backend, ErrorStatus, Reply, Request, Response};
use thiserror::Error;

use crate::vcpu_thread::ExitCounters;
use calls::Queue;
pub use calls::{Call, Calls, WAITING_LIMIT};
pub use cancellation::Cancellation;

/// Why an answer is not to be had.
#[derive(Debug, Error)]
pub enum Error {
    /// No VM was created.
    #[error("VM is not created")]
    NotCreated,
    /// The VM does not run.
    #[error("VM is not running")]
    NotRunning,
    /// Too many requests wait.
    #[error("{WAITING_LIMIT} requests wait already; try again when some are done")]
    Busy,
    /// The main loop is gone.
    #[error("the VMM is shutting down")]
    Ending,
}

/// What the main loop publishes, and what it is told while it is busy.
#[derive(Debug, Default)]
pub struct Shared {
    published: Mutex<Published>,
    cancellation: Cancellation,
}

#[derive(Debug, Default)]
struct Published {
    info: Option<VmInfo>,
    counters: Option<Arc<ExitCounters>>,
    progress: Progress,
}

impl Shared {
    /// Publishes the state of the VM, or that there is none.
    pub fn publish(&self, info: Option<VmInfo>) {
        self.lock().info = info;
    }

    /// Publishes the counters of the VM that runs now, or that none does.
    pub fn publish_counters(&self, counters: Option<Arc<ExitCounters>>) {
        self.lock().counters = counters;
    }

    /// Publishes how far a long action is.
    pub fn publish_progress(&self, update: impl FnOnce(&mut Progress)) {
        update(&mut self.lock().progress);
    }

    /// Which actions are to stop.
    #[must_use]
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        // Every update replaces a whole value.
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The API's way to the main loop.
pub struct Remote {
    queue: Queue,
    shared: Arc<Shared>,
}

impl Backend for Remote {
    fn begin(&self, request: Request, fds: Vec<OwnedFd>, reply: Reply) {
        match self.immediate(&request) {
            Some(answer) => reply.send(answer),
            None => self.queue.push(Call {
                request,
                fds,
                reply,
                number: self.shared.cancellation.number(),
            }),
        }
    }
}

impl Remote {
    /// How far the long action under way is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.shared.lock().progress.clone()
    }

    /// The answer, if the main loop is not needed for it.
    fn immediate(&self, request: &Request) -> Option<Result<Response, ApiError>> {
        Some(match request {
            Request::Ping => Ok(Response::Ping(ping())),
            Request::Info => match &self.shared.lock().info {
                Some(info) => Ok(Response::Info(Box::new(info.clone()))),
                None => Err(no_info(ErrorStatus::NotFound, &Error::NotCreated)),
            },
            Request::Counters => match &self.shared.lock().counters {
                Some(counters) => Ok(Response::Counters(exits(counters))),
                None => Err(no_info(ErrorStatus::Failed, &Error::NotRunning)),
            },
            Request::Progress => Ok(Response::Progress(self.progress())),
            Request::Cancel => {
                self.shared.cancellation.cancel();
                Ok(Response::Done)
            }
            _ => return None,
        })
    }
}

fn no_info(status: ErrorStatus, cause: &Error) -> ApiError {
    ApiError::action(status, "The VM info is not available", cause)
}

fn unavailable(status: ErrorStatus, cause: &Error) -> ApiError {
    ApiError::action(status, "The request was not begun", cause)
}

/// The guest's exits to the VMM, in the shape of device counters.
fn exits(counters: &ExitCounters) -> Counters {
    let exits = [("pio_exits", &counters.pio), ("mmio_exits", &counters.mmio)]
        .map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed)));
    Counters::from([("vcpus".to_owned(), exits.into())])
}

fn ping() -> PingInfo {
    PingInfo {
        build_version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: i64::from(std::process::id()),
        features: vec!["kvm".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::{Calls, Remote, WAITING_LIMIT};
    use crate::events::EventQueue;
    use dormouse_api::{Backend, ErrorStatus, PendingAnswer, Reply, Request, Response};

    fn calls() -> Calls {
        Calls::new(EventQueue::new().unwrap().wake())
    }

    fn ask(remote: &Remote, request: Request) -> PendingAnswer {
        let (reply, answer) = Reply::new();
        remote.begin(request, Vec::new(), reply);
        answer
    }

    /// Status and reason of a refusal.
    fn refusal(answer: PendingAnswer) -> (ErrorStatus, String) {
        let error = answer.wait().unwrap().unwrap_err();
        (error.status(), error.to_string())
    }

    #[test]
    fn requests_beyond_the_limit_are_refused_at_once_and_questions_answered() {
        let calls = calls();
        let remote = calls.remote();
        let waiting: Vec<_> = (0..WAITING_LIMIT)
            .map(|_| ask(&remote, Request::Pause))
            .collect();
        let (status, reason) = refusal(ask(&remote, Request::Pause));
        assert_eq!(status, ErrorStatus::TooManyRequests);
        assert!(reason.contains("8 requests wait already"), "{reason}");
        for request in [Request::Ping, Request::Progress, Request::Cancel] {
            ask(&remote, request).wait().unwrap().unwrap();
        }
        calls.next().unwrap().reply.send(Ok(Response::Done));
        let mut waiting = waiting.into_iter();
        waiting.next().unwrap().wait().unwrap().unwrap();
        let _next = ask(&remote, Request::Resume);
        for _ in 1..WAITING_LIMIT {
            assert!(matches!(calls.next().unwrap().request, Request::Pause));
        }
        assert!(matches!(calls.next().unwrap().request, Request::Resume));
        assert!(calls.next().is_none());
    }

    #[test]
    fn requests_of_clients_that_have_gone_are_not_begun_and_make_room() {
        let calls = calls();
        let remote = calls.remote();
        for _ in 0..3 * WAITING_LIMIT {
            drop(ask(&remote, Request::Pause));
        }
        let _waits = ask(&remote, Request::Resume);
        let gone = ask(&remote, Request::Pause);
        assert!(matches!(calls.next().unwrap().request, Request::Resume));
        drop(gone);
        assert!(calls.next().is_none());
    }

    #[test]
    fn requests_are_answered_when_the_main_loop_ends() {
        let calls = calls();
        let remote = calls.remote();
        let waits = ask(&remote, Request::Boot);
        drop(calls);
        for answer in [waits, ask(&remote, Request::Boot)] {
            let (status, reason) = refusal(answer);
            assert_eq!(status, ErrorStatus::Failed);
            assert!(reason.contains("the VMM is shutting down"), "{reason}");
        }
        ask(&remote, Request::Ping).wait().unwrap().unwrap();
    }
}
