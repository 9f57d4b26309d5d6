//! Tests of the server against a scripted backend, over real sockets.

mod abuse;
mod clients;
mod descriptors;
mod wire;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Limits, Server, ShutdownHandle};
use crate::backend::{ApiError, Backend, ErrorStatus};
use crate::client::Client;
use crate::config::VmConfig;
use crate::reply::Reply;
use crate::request::Request;
use crate::response::{PingInfo, Response, VmInfo, VmState};

/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A backend that notes what it is asked, and holds snapshots until it is told to let go.
#[derive(Default)]
struct ScriptedBackend {
    seen: Mutex<Vec<(Request, usize)>>,
    held: Mutex<Held>,
}

/// Snapshots that wait for their answers, and whether they still do.
#[derive(Default)]
struct Held {
    replies: Vec<Reply>,
    released: bool,
}

impl ScriptedBackend {
    fn seen(&self) -> Vec<(Request, usize)> {
        self.seen.lock().expect("no test panicked with it").clone()
    }

    fn release(&self) {
        let mut held = self.held.lock().expect("no test panicked with it");
        held.released = true;
        for reply in held.replies.drain(..) {
            reply.send(Ok(Response::Done));
        }
    }

    /// How many snapshots are held, and how many of them nobody waits for any more.
    fn held(&self) -> (usize, usize) {
        let held = self.held.lock().expect("no test panicked with it");
        let abandoned = held.replies.iter().filter(|reply| reply.is_abandoned());
        (held.replies.len(), abandoned.count())
    }
}

impl Backend for ScriptedBackend {
    fn begin(&self, request: Request, fds: Vec<OwnedFd>, reply: Reply) {
        self.seen
            .lock()
            .expect("no test panicked with it")
            .push((request.clone(), fds.len()));
        let mut held = self.held.lock().expect("no test panicked with it");
        if matches!(request, Request::Snapshot(_)) && !held.released {
            held.replies.push(reply);
            return;
        }
        reply.send(match request {
            Request::Ping => Ok(Response::Ping(PingInfo {
                build_version: "v1 \u{1f42d}".to_owned(),
                version: "1".to_owned(),
                pid: 7,
                features: vec!["kvm".to_owned()],
            })),
            Request::Info => Ok(Response::Info(Box::new(VmInfo {
                config: VmConfig::default(),
                state: VmState::Created,
                memory_actual_size: 512 << 20,
                device_tree: None,
                devices_state: Vec::new(),
                timeline: None,
            }))),
            Request::Boot => Err(ApiError::new(
                ErrorStatus::NotFound,
                [
                    "Error from API",
                    "The VM could not boot",
                    "VM config is missing",
                ],
            )),
            _ => Ok(Response::Done),
        });
    }
}

/// A server that runs until the test ends.
struct Running {
    directory: TempDir,
    backend: Arc<ScriptedBackend>,
    end: ShutdownHandle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(limits: Limits) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut server = Server::bind(&directory.path().join("api")).expect("it listens");
        server.limits = limits;
        let end = server.shutdown_handle();
        let backend = Arc::new(ScriptedBackend::default());
        let served = Arc::clone(&backend);
        let thread = std::thread::spawn(move || server.serve(served).expect("it serves"));
        Self {
            directory,
            backend,
            end,
            thread: Some(thread),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    fn client(&self) -> Client {
        Client::new(&self.path())
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).expect("it connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Waits until the backend has been asked something.
    fn await_call(&self) {
        self.wait_until(|backend| !backend.seen().is_empty());
    }

    /// Waits for something to become true of the backend.
    #[track_caller]
    fn wait_until(&self, holds: impl Fn(&ScriptedBackend) -> bool) {
        let start = Instant::now();
        while !holds(&self.backend) {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.backend.held());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stop(&mut self) {
        self.backend.release();
        self.end.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends `request` and demands exactly `expected`, and an open connection after it.
fn check(stream: &mut UnixStream, request: &str, expected: &str) {
    stream.write_all(request.as_bytes()).expect("it is sent");
    let mut answer = vec![0; expected.len()];
    let read = stream.read_exact(&mut answer);
    assert_eq!(
        String::from_utf8_lossy(&answer),
        expected,
        "{request}: {read:?}"
    );
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a timeout");
    let more = stream.read(&mut [0; 64]);
    assert!(
        more.as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
        "{request}: more bytes: {more:?}"
    );
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
}

/// Everything that the server sends until it closes the connection.
fn read_to_close(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    // A server that gives up on a client may reset the connection; what it sent before counts.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("answers are ASCII")
}
