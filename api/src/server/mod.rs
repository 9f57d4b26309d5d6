//! The HTTP server of the API, on a Unix socket.
//!
//! It runs on the thread that calls [`Server::serve`], with a single-threaded runtime, and starts no other: the backend only
//! begins what takes time, so that it delays neither other clients nor calls that only ask. Every part of a request is
//! bounded in size and in time.

mod activity;
mod answer;
mod ascii_json;
mod calls;
mod connections;
pub(crate) mod route;
mod socket;
mod stream;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use crate::backend::Backend;
use calls::Calls;
use connections::Connections;
pub use socket::BindError;
use socket::SocketFile;

/// How much a client may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at a time.
    connections: usize,
    /// For the head of a request, and between two requests.
    head_timeout: Duration,
    /// For the body of a request.
    body_timeout: Duration,
    /// For a client to read any part of an answer.
    write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// Why the server stopped by itself.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The host gave no event queue or timer.
    #[error("cannot start the runtime of the API server")]
    Runtime(#[source] io::Error),
    /// The socket cannot be watched.
    #[error("cannot watch the API socket")]
    Watch(#[source] io::Error),
}

/// Ends a server from any thread.
#[derive(Clone, Debug)]
pub struct ShutdownHandle(Arc<watch::Sender<bool>>);

impl ShutdownHandle {
    /// Ends the server: it accepts no more connections, sends the answers under way, and removes its socket.
    pub fn shutdown(&self) {
        self.0.send_replace(true);
    }
}

/// A bound API socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
    end: ShutdownHandle,
    limits: Limits,
}

impl Server {
    /// Listens on a new socket at `path`, which only the owner can use. A socket that a dead process left is replaced;
    /// anything else at `path` is an error. Clients may connect at once, and are answered when [`Server::serve`] runs.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let (listener, file) = socket::listen(path)?;
        let end = ShutdownHandle(Arc::new(watch::Sender::new(false)));
        Ok(Self {
            listener,
            file,
            end,
            limits: Limits::default(),
        })
    }

    /// What ends the server.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.end.clone()
    }

    /// Answers requests with `backend` until it is told to end. Actions that still run a little later are not waited for.
    pub fn serve(self, backend: Arc<dyn Backend>) -> Result<(), ServeError> {
        let Self {
            listener,
            file,
            end,
            limits,
        } = self;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        runtime.block_on(async {
            let listener =
                tokio::net::UnixListener::from_std(listener).map_err(ServeError::Watch)?;
            let calls = Calls::new(backend, limits.body_timeout);
            let mut connections = Connections::new(calls, limits, end.0.subscribe());
            connections.accept_from(&listener).await;
            drop((listener, file));
            connections.finish().await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
