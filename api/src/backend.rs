//! The seam between the HTTP server and the machine: what answers a request, and how it refuses one.

use std::error::Error;
use std::fmt;
use std::os::fd::OwnedFd;

use crate::config::ConfigError;
use crate::reply::Reply;
use crate::request::Request;

/// First text of the error of every VM action, as in Cloud Hypervisor.
const ACTION_FAILED: &str = "Error from API";

/// What answers the requests.
///
/// The server has one thread for all clients, so nothing here may block. What takes time is done on another thread, which
/// keeps the [`Reply`] until it is done.
pub trait Backend: Send + Sync + 'static {
    /// Begins what `request` asks and returns; the answer goes to `reply`. Requests for which [`Request::is_immediate`]
    /// holds are answered before this returns, whatever else runs. `fds` holds the descriptors that came with a restore,
    /// exactly [`RestoreRequest::expected_fds`](crate::request::RestoreRequest::expected_fds) of them, and is empty
    /// otherwise.
    fn begin(&self, request: Request, fds: Vec<OwnedFd>, reply: Reply);
}

/// Status of a refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorStatus {
    /// The request or the config is wrong.
    BadRequest,
    /// There is no VM, no config, or no such device.
    NotFound,
    /// A device's id, path or slot is taken.
    Conflict,
    /// Too much is under way already.
    TooManyRequests,
    /// Everything else, also a VM in the wrong state.
    Failed,
}

impl ErrorStatus {
    /// The HTTP status code.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooManyRequests => 429,
            Self::Failed => 500,
        }
    }
}

/// A refused or failed request: a status, and what was attempted, outermost first and the root cause last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: ErrorStatus,
    chain: Vec<String>,
}

impl ApiError {
    /// A refusal with the given texts, outermost first.
    pub fn new<T: Into<String>>(status: ErrorStatus, chain: impl IntoIterator<Item = T>) -> Self {
        Self {
            status,
            chain: chain.into_iter().map(Into::into).collect(),
        }
    }

    /// A VM action that failed: `attempt` says which, as in "The VM could not be paused", and `cause` why.
    pub fn action(status: ErrorStatus, attempt: &str, cause: &dyn Error) -> Self {
        Self::new(status, [ACTION_FAILED, attempt]).caused_by(cause)
    }

    /// A VM action that cannot be done because of the config: 409 for duplicates, else 400.
    pub fn config(attempt: &str, cause: &ConfigError) -> Self {
        let status = if cause.is_duplicate() {
            ErrorStatus::Conflict
        } else {
            ErrorStatus::BadRequest
        };
        Self::action(status, attempt, cause)
    }

    /// A body that is not the expected JSON.
    pub(crate) fn unreadable(cause: &dyn Error) -> Self {
        Self::new(ErrorStatus::BadRequest, ["Failed to deserialize JSON"]).caused_by(cause)
    }

    /// A request that breaks the protocol.
    pub(crate) fn bad_request() -> Self {
        Self::new(ErrorStatus::BadRequest, ["Bad Request"])
    }

    /// Adds `cause` and what it was caused by.
    fn caused_by(mut self, cause: &dyn Error) -> Self {
        let mut next = Some(cause);
        while let Some(error) = next {
            self.chain.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// The status.
    pub fn status(&self) -> ErrorStatus {
        self.status
    }

    /// The texts, outermost first.
    pub fn chain(&self) -> &[String] {
        &self.chain
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.chain.join(": "))
    }
}

impl Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::{ApiError, ErrorStatus};
    use crate::config::VmConfig;

    #[test]
    fn config_error_becomes_a_chain_with_the_root_cause_last() {
        let error = VmConfig::default()
            .validate()
            .expect_err("it has no kernel");
        let error = ApiError::config("The VM could not boot", &error);
        assert_eq!(error.status(), ErrorStatus::BadRequest);
        assert_eq!(
            error.chain(),
            [
                "Error from API",
                "The VM could not boot",
                "cannot use payload",
                "payload.kernel is required; firmware is not implemented"
            ]
        );
    }

    #[test]
    fn duplicate_is_a_conflict() {
        let config = br#"{"payload":{"kernel":"/k"},"devices":[{"path":"/a"},{"path":"/a/"}]}"#;
        let error = VmConfig::from_file_bytes(config)
            .expect("it can be read")
            .validate();
        let error = ApiError::config("The VM could not boot", &error.expect_err("a duplicate"));
        assert_eq!(error.status().code(), 409);
    }
}
