//! One HTTP request: read its body, find its command, run the backend, answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request as HttpRequest, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{self, Answer};
use super::route;
use super::stream::FdInbox;
use crate::backend::{ApiError, Backend, ErrorStatus};
use crate::config::CONFIG_LIMIT_BYTES;
use crate::openapi;
use crate::request::Request;

/// Calls that only ask and run at the same time.
const IMMEDIATE_CALLS: usize = 4;
/// Calls that act and run at the same time; later ones wait.
const ACTION_CALLS: usize = 4;
/// Threads that all these calls need.
pub(super) const CALL_THREADS: usize = IMMEDIATE_CALLS + ACTION_CALLS;

/// The backend and how many calls of each kind it may still be given.
pub(super) struct Calls {
    backend: Arc<dyn Backend>,
    immediate: Semaphore,
    actions: Semaphore,
    body_timeout: Duration,
}

impl Calls {
    /// Calls to `backend`, with bodies that have to arrive within `body_timeout`.
    pub(super) fn new(backend: Arc<dyn Backend>, body_timeout: Duration) -> Self {
        Self {
            backend,
            immediate: Semaphore::new(IMMEDIATE_CALLS),
            actions: Semaphore::new(ACTION_CALLS),
            body_timeout,
        }
    }

    /// Answers one HTTP request; `inbox` holds the descriptors that came with it.
    pub(super) async fn answer(
        &self,
        http: HttpRequest<Incoming>,
        inbox: &FdInbox,
    ) -> Result<Answer, Infallible> {
        let (head, body) = http.into_parts();
        // The body is read even for a request that is refused: the client may still be sending, and would otherwise
        // fail before it sees the answer.
        let body = match self.read_body(body).await {
            Ok(body) => body,
            Err(reason) => return Ok(answer::closing(answer::of_error(&reason))),
        };
        let fds = inbox.take();
        let Some(route) = route::find(head.uri.path()) else {
            return Ok(answer::not_found());
        };
        if head.method != route.method {
            return Ok(answer::of_error(&ApiError::bad_request()));
        }
        let request = match route.request(&body) {
            Ok(None) => return Ok(answer::document(openapi::DOCUMENT)),
            Ok(Some(Request::Restore(restore))) if restore.expected_fds() != fds.len() => {
                Err(ApiError::bad_request())
            }
            Ok(Some(request)) => Ok(request),
            Err(error) => Err(error),
        };
        Ok(match request {
            Ok(request) => self.run(request, fds).await,
            Err(error) => answer::of_error(&error),
        })
    }

    async fn read_body(&self, body: Incoming) -> Result<Bytes, ApiError> {
        let too_long = || bad_body("the body is longer than 4 MiB");
        if body.size_hint().lower() > CONFIG_LIMIT_BYTES as u64 {
            return Err(too_long());
        }
        match timeout(
            self.body_timeout,
            Limited::new(body, CONFIG_LIMIT_BYTES).collect(),
        )
        .await
        {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
            Ok(Err(_)) => Err(bad_body("the body cannot be read")),
            Err(_) => Err(bad_body("the body did not arrive in time")),
        }
    }

    async fn run(&self, request: Request, fds: Vec<std::os::fd::OwnedFd>) -> Answer {
        let fds = if matches!(request, Request::Restore(_)) {
            fds
        } else {
            Vec::new()
        };
        let permits = if request.is_immediate() {
            &self.immediate
        } else {
            &self.actions
        };
        let Ok(_permit) = permits.acquire().await else {
            return answer::of_error(&ApiError::new(
                ErrorStatus::Failed,
                ["Error from API", "The VMM is ending"],
            ));
        };
        let ends_vmm = matches!(request, Request::VmmShutdown);
        let command = request.command();
        let backend = Arc::clone(&self.backend);
        match tokio::task::spawn_blocking(move || backend.call(request, fds)).await {
            Ok(Ok(_)) if ends_vmm => answer::empty(StatusCode::OK),
            Ok(Ok(response)) => answer::of_response(&response),
            Ok(Err(error)) => {
                tracing::debug!("{command} failed: {error}");
                answer::of_error(&error)
            }
            Err(_) => answer::of_error(&ApiError::new(
                ErrorStatus::Failed,
                ["Error from API", "The call did not end"],
            )),
        }
    }
}

fn bad_body(reason: &str) -> ApiError {
    ApiError::new(ErrorStatus::BadRequest, ["Bad Request", reason])
}
