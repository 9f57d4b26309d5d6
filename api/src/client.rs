//! A blocking client of the API, for `dormouse ctl` and for tests.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request as HttpRequest, Response as HttpResponse};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::request::Request;
use crate::response::{PingInfo, Progress, VmInfo};
use crate::server::route::{API_PREFIX, find};

/// Longest answer that is read, in bytes.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;

/// Why a call did not succeed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The runtime cannot be made.
    #[error("cannot start the API client")]
    Runtime(#[source] io::Error),
    /// Nobody listens on the socket.
    #[error("cannot connect to the API socket {}; is the VMM running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The request cannot be written.
    #[error("cannot make the request {command}")]
    Encode {
        /// The command.
        command: &'static str,
        /// What cannot be written.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke.
    #[error("no answer to {command}")]
    Exchange {
        /// The command.
        command: &'static str,
        /// How it broke.
        source: hyper::Error,
    },
    /// The answer is too long, or breaks off.
    #[error("cannot read the answer to {command}")]
    Read {
        /// The command.
        command: &'static str,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what the command returns.
    #[error("cannot understand the answer to {command}")]
    Decode {
        /// The command.
        command: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The VMM refused the command or failed at it.
    #[error("{command} failed with status {status}: {}", chain.join(": "))]
    Refused {
        /// The command.
        command: &'static str,
        /// The HTTP status.
        status: u16,
        /// What was attempted, outermost first and the root cause last.
        chain: Vec<String>,
    },
}

/// A client of the API at one socket. Each call makes a connection of its own, and waits for as long as it takes.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the API socket at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Makes a call, and returns the answer's body: JSON, or nothing.
    pub fn call(&self, request: &Request) -> Result<Vec<u8>, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime
            .map_err(ClientError::Runtime)?
            .block_on(self.exchange(request))
    }

    /// Asks which VMM answers.
    pub fn ping(&self) -> Result<PingInfo, ClientError> {
        self.ask(&Request::Ping)
    }

    /// Asks for a description of the VM.
    pub fn info(&self) -> Result<VmInfo, ClientError> {
        self.ask(&Request::Info)
    }

    /// Asks how far a long action is.
    pub fn progress(&self) -> Result<Progress, ClientError> {
        self.ask(&Request::Progress)
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let command = request.command();
        let body = self.call(request)?;
        serde_json::from_slice(&body).map_err(|source| ClientError::Decode { command, source })
    }

    async fn exchange(&self, request: &Request) -> Result<Vec<u8>, ClientError> {
        let command = request.command();
        let http = to_http(request).map_err(|source| ClientError::Encode { command, source })?;
        let stream =
            UnixStream::connect(&self.path)
                .await
                .map_err(|source| ClientError::Connect {
                    path: self.path.clone(),
                    source,
                })?;
        let broken = |source| ClientError::Exchange { command, source };
        let mut builder = http1::Builder::new();
        let handshake = builder
            .title_case_headers(true)
            .handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        // It ends with the runtime; its errors come out of the request as well.
        tokio::spawn(connection);
        let answer = sender.send_request(http).await.map_err(broken)?;
        read_answer(command, answer).await
    }
}

fn to_http(
    request: &Request,
) -> Result<HttpRequest<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let body = match request {
        Request::Create(config) => serde_json::to_vec(config)?,
        Request::Snapshot(snapshot) => serde_json::to_vec(snapshot)?,
        Request::Restore(restore) => serde_json::to_vec(restore)?,
        _ => Vec::new(),
    };
    let path = format!("{API_PREFIX}{}", request.command());
    let method = find(&path)
        .map(|route| route.method.clone())
        .unwrap_or_default();
    let builder = HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost");
    Ok(builder.body(Full::new(Bytes::from(body)))?)
}

async fn read_answer(
    command: &'static str,
    answer: HttpResponse<Incoming>,
) -> Result<Vec<u8>, ClientError> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT_BYTES)
        .collect()
        .await
        .map_err(|source| ClientError::Read { command, source })?
        .to_bytes();
    if status.is_success() {
        return Ok(body.to_vec());
    }
    // A server of another kind may send something else than an array of texts.
    let chain = serde_json::from_slice(&body)
        .unwrap_or_else(|_| vec![String::from_utf8_lossy(&body).chars().take(1024).collect()]);
    Err(ClientError::Refused {
        command,
        status: status.as_u16(),
        chain,
    })
}
