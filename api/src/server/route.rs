//! The table of commands: which path and method reads which request. The server, the OpenAPI document and the tests all
//! go by it.

use hyper::Method;

use crate::backend::ApiError;
use crate::config::{VmConfig, Warning, from_json};
use crate::request::{Request, RestoreRequest, SnapshotRequest};

/// What all paths begin with.
pub(crate) const API_PREFIX: &str = "/api/v1/";

/// A command of the API.
pub(crate) struct Route {
    /// The path after [`API_PREFIX`].
    pub(crate) command: &'static str,
    /// The only method that it answers.
    pub(crate) method: Method,
    /// How a request becomes a call.
    pub(crate) target: Target,
}

/// How a request becomes a call.
pub(crate) enum Target {
    /// A call without a body.
    Plain(Request),
    /// A call that is read from a body.
    Body(fn(&[u8]) -> Result<Request, ApiError>),
    /// The OpenAPI document, which the server answers by itself.
    Document,
}

/// Every command.
pub(crate) static ROUTES: [Route; 17] = [
    get("openapi.json", Target::Document),
    get("vmm.ping", Target::Plain(Request::Ping)),
    put("vmm.shutdown", Target::Plain(Request::VmmShutdown)),
    put("vm.create", Target::Body(read_create)),
    put("vm.boot", Target::Plain(Request::Boot)),
    get("vm.info", Target::Plain(Request::Info)),
    get("vm.counters", Target::Plain(Request::Counters)),
    put("vm.pause", Target::Plain(Request::Pause)),
    put("vm.resume", Target::Plain(Request::Resume)),
    put("vm.snapshot", Target::Body(read_snapshot)),
    put("vm.restore", Target::Body(read_restore)),
    put("vm.shutdown", Target::Plain(Request::Shutdown)),
    put("vm.delete", Target::Plain(Request::Delete)),
    put("vm.reboot", Target::Plain(Request::Reboot)),
    put("vm.power-button", Target::Plain(Request::PowerButton)),
    get("vm.progress", Target::Plain(Request::Progress)),
    put("vm.cancel", Target::Plain(Request::Cancel)),
];

const fn get(command: &'static str, target: Target) -> Route {
    Route {
        command,
        method: Method::GET,
        target,
    }
}

const fn put(command: &'static str, target: Target) -> Route {
    Route {
        command,
        method: Method::PUT,
        target,
    }
}

impl Route {
    /// The request that comes with `body`; none for the document, which is no call. Bodies are refused where there is
    /// nothing to say.
    pub(crate) fn request(&self, body: &[u8]) -> Result<Option<Request>, ApiError> {
        match &self.target {
            Target::Body(_) if body.is_empty() => Err(ApiError::bad_request()),
            Target::Body(read) => read(body).map(Some),
            _ if !body.is_empty() => Err(ApiError::bad_request()),
            Target::Plain(request) => Ok(Some(request.clone())),
            Target::Document => Ok(None),
        }
    }
}

impl Request {
    /// Reads the request for `command`, the part of the path after `/api/v1/`, from the body that came with it, as the
    /// server does. None if there is no such command, or none that is a call.
    pub fn from_body(command: &str, body: &[u8]) -> Option<Result<Self, ApiError>> {
        ROUTES
            .iter()
            .find(|route| route.command == command)?
            .request(body)
            .transpose()
    }
}

/// The command at `path`, if there is one.
pub(crate) fn find(path: &str) -> Option<&'static Route> {
    let command = path.strip_prefix(API_PREFIX)?;
    ROUTES.iter().find(|route| route.command == command)
}

fn read_create(body: &[u8]) -> Result<Request, ApiError> {
    let (config, warnings) = VmConfig::from_http_bytes(body).map_err(|error| {
        if error.is_unreadable() {
            ApiError::unreadable(&error)
        } else {
            ApiError::config("The VM could not be created", &error)
        }
    })?;
    log_ignored("vm.create", &warnings);
    Ok(Request::Create(Box::new(config)))
}

fn read_snapshot(body: &[u8]) -> Result<Request, ApiError> {
    let (request, warnings): (SnapshotRequest, _) =
        from_json(body).map_err(|error| ApiError::unreadable(&error))?;
    log_ignored("vm.snapshot", &warnings);
    Ok(Request::Snapshot(request))
}

fn read_restore(body: &[u8]) -> Result<Request, ApiError> {
    let (request, warnings): (RestoreRequest, _) =
        from_json(body).map_err(|error| ApiError::unreadable(&error))?;
    request
        .validate()
        .map_err(|error| ApiError::config("The VM could not be restored", &error))?;
    log_ignored("vm.restore", &warnings);
    Ok(Request::Restore(request))
}

fn log_ignored(command: &str, warnings: &[Warning]) {
    for warning in warnings {
        tracing::warn!("{command}: ignored {warning}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{API_PREFIX, ROUTES, Request, Target, find};

    #[test]
    fn each_plain_route_makes_the_request_it_is_named_after() {
        for route in &ROUTES {
            if let Target::Plain(request) = &route.target {
                assert_eq!(request.command(), route.command);
            }
        }
    }

    #[test]
    fn body_is_read_where_it_belongs_and_refused_elsewhere() {
        let read = |command, body: &[u8]| Request::from_body(command, body);
        assert!(matches!(read("vm.pause", b""), Some(Ok(Request::Pause))));
        assert!(matches!(read("vm.pause", b"{}"), Some(Err(_))));
        assert!(matches!(read("vm.create", b""), Some(Err(_))));
        assert!(matches!(
            read("vm.create", b"{}"),
            Some(Ok(Request::Create(_)))
        ));
        assert!(read("openapi.json", b"").is_none());
        assert!(read("vm.nmi", b"").is_none());
    }

    #[test]
    fn routes_are_unique_and_found_by_their_path() {
        let commands: HashSet<_> = ROUTES.iter().map(|route| route.command).collect();
        assert_eq!(commands.len(), ROUTES.len());
        assert!(find(&format!("{API_PREFIX}vm.info")).is_some());
        for path in [
            "",
            "/",
            "/api/v1/",
            "/api/v1/vm.nmi",
            "/api/v2/vm.info",
            "/api/v1/vm.info/",
            "vm.info",
        ] {
            assert!(find(path).is_none(), "{path}");
        }
    }
}
