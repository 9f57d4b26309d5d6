//! The thread that serves the HTTP API.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use dormouse_api::{Backend, Server, ShutdownHandle};
use dormouse_vmm::seccomp;

/// A running API server. Dropping it ends the thread and removes the socket.
pub struct ApiThread {
    end: ShutdownHandle,
    thread: Option<JoinHandle<()>>,
}

/// A server that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread of the API server")]
struct SpawnError(#[source] io::Error);

impl ApiThread {
    /// Serves `backend` on a new socket at `path`.
    pub fn start(
        path: &Path,
        backend: Arc<dyn Backend>,
        seccomp_mode: seccomp::Mode,
    ) -> Result<Self, Box<dyn Error>> {
        let server = Server::bind(path)?;
        let end = server.shutdown_handle();
        let thread = std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || {
                let served = seccomp::apply(seccomp_mode, seccomp::Role::Api)
                    .map_err(Box::<dyn Error>::from)
                    .and_then(|()| server.serve(backend).map_err(Box::from));
                if let Err(error) = served {
                    tracing::error!("the API is not served any more: {error}");
                }
            })
            .map_err(SpawnError)?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for ApiThread {
    fn drop(&mut self) {
        self.end.shutdown();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
