//! One HTTP request: read its body, find its command, hand it to the backend, wait for the answer.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request as HttpRequest, StatusCode};
use tokio::time::timeout;

use super::activity::{Activity, Busy};
use super::answer::{self, Answer};
use super::route;
use super::stream::FdInbox;
use crate::backend::{ApiError, Backend, ErrorStatus};
use crate::config::CONFIG_LIMIT_BYTES;
use crate::openapi;
use crate::reply::Reply;
use crate::request::Request;

/// The backend, and how long clients may take to say what they want of it.
pub(super) struct Calls {
    backend: Arc<dyn Backend>,
    body_timeout: Duration,
}

impl Calls {
    /// Calls to `backend`, with bodies that have to arrive within `body_timeout`.
    pub(super) fn new(backend: Arc<dyn Backend>, body_timeout: Duration) -> Self {
        Self {
            backend,
            body_timeout,
        }
    }

    /// Answers one HTTP request; `inbox` holds the descriptors that came with it, and `activity` is told what it is.
    pub(super) async fn answer(
        &self,
        http: HttpRequest<Incoming>,
        inbox: &FdInbox,
        activity: &Arc<Activity>,
    ) -> Result<Answer, Infallible> {
        activity.touch();
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
            Ok(request) => self.run(request, fds, activity).await,
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

    async fn run(&self, request: Request, fds: Vec<OwnedFd>, activity: &Arc<Activity>) -> Answer {
        let fds = if matches!(request, Request::Restore(_)) {
            fds
        } else {
            Vec::new()
        };
        let ends_vmm = matches!(request, Request::VmmShutdown);
        let command = request.command();
        let _busy = (!request.is_immediate()).then(|| Busy::new(activity));
        let (reply, answer) = Reply::new();
        self.backend.begin(request, fds, reply);
        match answer.arrived().await {
            Some(Ok(_)) if ends_vmm => answer::empty(StatusCode::OK),
            Some(Ok(response)) => answer::of_response(&response),
            Some(Err(error)) => {
                tracing::debug!("{command} failed: {error}");
                answer::of_error(&error)
            }
            None => answer::of_error(&ApiError::new(
                ErrorStatus::Failed,
                ["Error from API", "The VMM has ended before it could answer"],
            )),
        }
    }
}

fn bad_body(reason: &str) -> ApiError {
    ApiError::new(ErrorStatus::BadRequest, ["Bad Request", reason])
}
