//! How API clients reach the main loop: a `Backend` that answers what it can at once and queues the rest.
//!
//! `vm.info`, `vm.progress` and `vm.cancel` never wait for the main loop: they read and write what the loop publishes in `Shared`.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use dormouse_api::response::{Counters, PingInfo, Progress, VmInfo};
use dormouse_api::{ApiError, Backend, ErrorStatus, Request, Response};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::vcpu_thread::ExitCounters;

/// Why an answer is not to be had.
#[derive(Debug, Error)]
pub enum Error {
    /// No VM was created.
    #[error("VM is not created")]
    NotCreated,
    /// The VM does not run.
    #[error("VM is not running")]
    NotRunning,
    /// The main loop is gone.
    #[error("the VMM is shutting down")]
    Ending,
}

/// A request on its way to the main loop.
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Where the answer goes.
    pub reply: mpsc::SyncSender<Result<Response, ApiError>>,
}

/// What the main loop publishes, and what it is told while it is busy.
#[derive(Debug, Default)]
pub struct Shared {
    published: Mutex<Published>,
    cancelled: Arc<AtomicBool>,
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

    /// Set when the action that runs is to stop.
    #[must_use]
    pub fn cancelled(&self) -> &Arc<AtomicBool> {
        &self.cancelled
    }

    /// Begins an action: forgets an earlier cancellation.
    pub fn begin(&self) {
        self.cancelled.store(false, Ordering::SeqCst);
        self.lock().progress = Progress::default();
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        // Every update replaces a whole value.
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving end, owned by the main loop.
pub struct Calls {
    queue: mpsc::Receiver<Call>,
    remote: Arc<Remote>,
}

impl Calls {
    /// An empty queue that wakes the main loop through `wake`.
    #[must_use]
    pub fn new(wake: Arc<EventFd>) -> Self {
        let (sender, queue) = mpsc::channel();
        let remote = Remote {
            queue: Mutex::new(sender),
            wake,
            shared: Arc::default(),
        };
        Self {
            queue,
            remote: Arc::new(remote),
        }
    }

    /// What an API server calls.
    #[must_use]
    pub fn remote(&self) -> Arc<Remote> {
        Arc::clone(&self.remote)
    }

    /// What is published to clients.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.remote.shared
    }

    /// The next request.
    #[must_use]
    pub fn next(&self) -> Option<Call> {
        self.queue.try_recv().ok()
    }
}

/// The API's way to the main loop.
pub struct Remote {
    queue: Mutex<mpsc::Sender<Call>>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
}

impl Backend for Remote {
    fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Response, ApiError> {
        match request {
            Request::Ping => Ok(Response::Ping(ping())),
            Request::Info => match &self.shared.lock().info {
                Some(info) => Ok(Response::Info(Box::new(info.clone()))),
                None => Err(unavailable(ErrorStatus::NotFound, &Error::NotCreated)),
            },
            Request::Counters => match &self.shared.lock().counters {
                Some(counters) => Ok(Response::Counters(exits(counters))),
                None => Err(unavailable(ErrorStatus::Failed, &Error::NotRunning)),
            },
            Request::Progress => Ok(Response::Progress(self.shared.lock().progress.clone())),
            Request::Cancel => {
                self.shared.cancelled.store(true, Ordering::SeqCst);
                Ok(Response::Done)
            }
            request => self.queue(request, fds),
        }
    }
}

impl Remote {
    fn queue(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Response, ApiError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let call = Call {
            request,
            fds,
            reply,
        };
        let queued = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(call);
        if queued.is_err() {
            return Err(unavailable(ErrorStatus::Failed, &Error::Ending));
        }
        // Fails only when the counter is full, and then the loop is awake anyway.
        let _ = self.wake.write(1);
        answer
            .recv()
            .unwrap_or_else(|_| Err(unavailable(ErrorStatus::Failed, &Error::Ending)))
    }
}

fn unavailable(status: ErrorStatus, cause: &Error) -> ApiError {
    ApiError::action(status, "The VM info is not available", cause)
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
