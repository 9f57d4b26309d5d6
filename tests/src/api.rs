//! A client of the HTTP API that shares nothing with Dormouse's own: it writes the bytes that Cloud Hypervisor's client
//! writes, one connection a request, and keeps the answer byte for byte.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::vm::{SOON, connect};

/// The API of one VMM.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Status line and headers, up to and without the empty line.
    pub head: String,
    /// Body.
    pub body: String,
}

impl Answer {
    /// The body, which is JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the status and returns the answer.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Checks that this is a refusal with `status` whose array of reasons names all `nouns` (in any case).
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn expect_error(self, status: u16, nouns: &[&str]) {
        let answer = self.expect(status);
        let reasons: Vec<String> = serde_json::from_str(&answer.body)
            .unwrap_or_else(|error| panic!("no array of strings, {error}: {answer:?}"));
        assert!(!reasons.is_empty() && answer.body.is_ascii(), "{answer:?}");
        let text = reasons.join(": ").to_lowercase();
        for noun in nouns {
            let named = text.contains(&noun.to_lowercase());
            assert!(named, "{noun:?} is not named: {answer:?}");
        }
    }
}

impl Api {
    /// The API at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Sends a request and reads its answer, waiting for the socket to be there.
    ///
    /// # Panics
    /// When there is no answer, or one that Cloud Hypervisor's client would not understand.
    #[track_caller]
    pub fn call(&self, method: &str, command: &str, body: &str) -> Answer {
        exchange(connect(&self.socket), method, command, body)
            .unwrap_or_else(|broken| panic!("{method} {command} is not answered: {broken:?}"))
    }

    /// As [`Api::call`], for a VMM that may not be there, or be killed meanwhile.
    ///
    /// # Errors
    /// What came of the answer.
    pub fn try_call(&self, method: &str, command: &str, body: &str) -> Result<Answer, String> {
        let stream = UnixStream::connect(&self.socket).map_err(|error| error.to_string())?;
        exchange(stream, method, command, body)
    }

    /// `GET`.
    ///
    /// # Panics
    /// As [`Api::call`].
    #[track_caller]
    pub fn get(&self, command: &str) -> Answer {
        self.call("GET", command, "")
    }

    /// `PUT` without a body.
    ///
    /// # Panics
    /// As [`Api::call`].
    #[track_caller]
    pub fn put(&self, command: &str) -> Answer {
        self.call("PUT", command, "")
    }

    /// `state` of `vm.info`.
    ///
    /// # Panics
    /// When there is no VM.
    #[track_caller]
    pub fn state(&self) -> String {
        let info = self.get("vm.info").expect(200).json();
        info["state"].as_str().expect("a state is text").to_owned()
    }

    /// Waits until there is a VM and `vm.info` has this state.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn wait_for_state(&self, state: &str) {
        let deadline = Instant::now() + SOON;
        loop {
            let answer = self.get("vm.info");
            if answer.status == 200 && answer.json()["state"] == state {
                return;
            }
            assert!(Instant::now() < deadline, "not {state}: {answer:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The phase of the long action that is under way, if one is.
    ///
    /// # Panics
    /// When `vm.progress` is not answered.
    pub fn phase(&self) -> Option<String> {
        let progress = self.get("vm.progress").expect(200).json();
        progress["phase"].as_str().map(str::to_owned)
    }

    /// Snapshots the VM, which must be paused, into `dir`.
    ///
    /// # Panics
    /// As [`Api::call`].
    #[track_caller]
    pub fn snapshot(&self, dir: &Path) -> Answer {
        self.call("PUT", "vm.snapshot", &snapshot_body(dir))
    }
}

/// Sends a request and reads until its answer is whole.
fn exchange(
    mut stream: UnixStream,
    method: &str,
    command: &str,
    body: &str,
) -> Result<Answer, String> {
    let length = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    let request = format!(
        "{method} /api/v1/{command} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{length}\r\n{body}"
    );
    let read_timeout = stream.set_read_timeout(Some(2 * SOON));
    read_timeout.map_err(|error| error.to_string())?;
    let sent = stream.write_all(request.as_bytes());
    sent.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = parse(&bytes) {
            return Ok(answer);
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
            Ok(0) => return Err(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Body of `vm.snapshot` for a directory whose name needs no escapes.
pub fn snapshot_body(dir: &Path) -> String {
    format!(r#"{{"destination_url":"file://{}"}}"#, dir.display())
}

/// The answer once it is whole; by the rules of Cloud Hypervisor's client: no reason phrase, `Content-Length: ` spelled so.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).expect("headers are text");
    let status = head
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|status| status.trim_end_matches(' ').parse().ok())
        .unwrap_or_else(|| panic!("a status line of another form: {head:?}"));
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().expect("a length is a number"));
    let body = bytes.get(end + 4..end + 4 + length)?;
    Some(Answer {
        status,
        head: head.to_owned(),
        body: String::from_utf8(body.to_vec()).expect("bodies are text"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_parsed_when_it_is_whole() {
        let bytes = b"HTTP/1.1 404 \r\nContent-Length: 5\r\n\r\n[\"x\"]";
        assert_eq!(parse(&bytes[..bytes.len() - 1]), None);
        let answer = parse(bytes).expect("it is whole");
        answer.expect_error(404, &["X"]);
    }

    #[test]
    #[should_panic(expected = "another form")]
    fn a_reason_phrase_is_no_answer() {
        let _ = parse(b"HTTP/1.1 204 No Content\r\n\r\n");
    }
}
