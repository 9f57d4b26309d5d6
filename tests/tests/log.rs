//! Standard error: whoever reads the log, or does not, never decides over the VMM.

use std::io::{PipeReader, Read, pipe};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dormouse_tests::binary::dormouse;
use dormouse_tests::vm::SOON;
use dormouse_tests::{Api, kvm_guest};
use tempfile::TempDir;

/// A server that dies with its owner.
struct Server {
    api: Api,
    child: Child,
    _dir: TempDir,
}

/// A server whose log goes into a pipe.
fn serve() -> (Server, PipeReader) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let (reader, writer) = pipe().expect("a pipe can be made");
    let child = Command::new(dormouse())
        .arg("serve")
        .arg("--api-socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .spawn()
        .expect("the binary can be started");
    let server = Server {
        api: Api::new(&socket),
        child,
        _dir: dir,
    };
    (server, reader)
}

impl Server {
    /// Asks for something that leaves two lines of more than 100 bytes in all.
    fn fail(&self, command: &str) {
        self.api.put(command).expect_error(500, &["not running"]);
    }

    /// Ends it, and checks that it waits for nobody.
    fn end(mut self) {
        self.api.put("vmm.shutdown").expect(200);
        let begin = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None => assert!(begin.elapsed() < SOON, "the VMM does not end"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "{status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail harmlessly for a VMM that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn reader_that_stalls_does_not_stall_the_vmm() {
    if kvm_guest().is_none() {
        return;
    }
    let (server, mut reader) = serve();
    // More than pipe and backlog hold.
    for _ in 0..1500 {
        server.fail("vm.pause");
    }
    let mut chunk = [0; 64 << 10];
    let mut text = Vec::new();
    let count = reader.read(&mut chunk).unwrap();
    text.extend_from_slice(&chunk[..count]);
    // Now there is room, and the rest follows.
    for _ in 0..2 {
        server.fail("vm.pause");
        let count = reader.read(&mut chunk).unwrap();
        text.extend_from_slice(&chunk[..count]);
    }
    let rest = std::thread::spawn(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest)
    });
    server.fail("vm.resume");
    server.end();
    text.extend(rest.join().unwrap().unwrap());
    let text = String::from_utf8(text).expect("the log is text");
    assert!(
        text.contains("lines of the log were lost"),
        "{}",
        text.len()
    );
    assert!(text.contains("vm.resume"), "what comes later is there");
    let whole = |line: &str| {
        line.starts_with(" INFO") || line.starts_with("ERROR") || line.starts_with(" WARN")
    };
    assert!(text.lines().all(whole), "no line is cut");
}

#[test]
fn reader_that_never_reads_does_not_keep_the_vmm_alive() {
    if kvm_guest().is_none() {
        return;
    }
    let (server, reader) = serve();
    for _ in 0..1500 {
        server.fail("vm.pause");
    }
    server.end();
    drop(reader);
}

#[test]
fn reader_that_has_gone_costs_only_the_log() {
    if kvm_guest().is_none() {
        return;
    }
    let (server, reader) = serve();
    drop(reader);
    server.fail("vm.pause");
    server.end();
    let (reader, writer) = pipe().expect("a pipe can be made");
    drop(reader);
    let status = Command::new(dormouse())
        .args(["run", "--config", "/nonexistent"])
        .stderr(writer)
        .status()
        .expect("the binary can be started");
    assert_eq!(status.code(), Some(1), "an error and no panic");
}
