//! Slow, greedy, dead and confused clients.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};

use super::{Limits, PATIENCE, Running, read_to_close};
use crate::client::ClientError;
use crate::config::CONFIG_LIMIT_BYTES;

const IMPATIENT: Limits = Limits {
    connections: 8,
    head_timeout: Duration::from_millis(300),
    body_timeout: Duration::from_millis(300),
    write_timeout: Duration::from_millis(300),
};

/// Asserts that a new client gets its answer; a server that is stuck fails the read after some time.
fn assert_answers(server: &Running) {
    let mut stream = server.connect();
    let ping = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(ping).expect("it is sent");
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("an answer in time");
    assert_eq!(&status, b"HTTP/1.1 200");
}

#[test]
fn head_that_never_ends_is_cut_off() {
    let server = Running::start(IMPATIENT);
    let mut stream = server.connect();
    let start = Instant::now();
    // One byte at a time keeps the connection alive, and must not extend the time.
    while stream.write_all(b"G").is_ok() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() < PATIENCE, "the server never gave up");
    assert_answers(&server);
}

#[test]
fn body_that_never_comes_is_refused() {
    let server = Running::start(IMPATIENT);
    let mut stream = server.connect();
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 10\r\n\r\n{";
    stream.write_all(head.as_bytes()).expect("it is sent");
    let answer = read_to_close(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 400 \r\n"), "{answer}");
    assert!(
        answer.ends_with(r#"["Bad Request","the body did not arrive in time"]"#),
        "{answer}"
    );
}

#[test]
fn oversized_bodies_are_refused() {
    let server = Running::start(Limits::default());
    for length in ["Content-Length: 4194305", "Content-Length: 999999999999999"] {
        let mut stream = server.connect();
        let head = format!("PUT /api/v1/vm.create HTTP/1.1\r\n{length}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("it is sent");
        let answer = read_to_close(&mut stream);
        assert!(
            answer.ends_with(r#"["Bad Request","the body is longer than 4 MiB"]"#),
            "{length}: {answer}"
        );
    }
    let mut stream = server.connect();
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n500000\r\n";
    stream.write_all(head.as_bytes()).expect("it is sent");
    // The server closes the connection somewhere in it.
    let _ = stream.write_all(&vec![b' '; 5 << 20]);
    let answer = read_to_close(&mut stream);
    assert!(
        answer.ends_with(r#"["Bad Request","the body is longer than 4 MiB"]"#),
        "{answer}"
    );
    assert_eq!(server.backend.seen(), []);
}

#[test]
fn longest_body_is_accepted() {
    let server = Running::start(Limits::default());
    let mut stream = server.connect();
    let head =
        format!("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {CONFIG_LIMIT_BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it is sent");
    let mut body = vec![b' '; CONFIG_LIMIT_BYTES];
    body[..2].copy_from_slice(b"{}");
    stream.write_all(&body).expect("it is sent");
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 204");
}

#[test]
fn huge_heads_are_refused() {
    let server = Running::start(Limits::default());
    for head in [
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(64 << 10)),
        format!(
            "GET /api/v1/vmm.ping HTTP/1.1\r\nX: {}\r\n\r\n",
            "x".repeat(64 << 10)
        ),
        format!(
            "GET /api/v1/vmm.ping HTTP/1.1\r\n{}\r\n",
            "X: y\r\n".repeat(1000)
        ),
    ] {
        let mut stream = server.connect();
        let _ = stream.write_all(head.as_bytes());
        let answer = read_to_close(&mut stream);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    assert_eq!(server.backend.seen(), []);
    assert_answers(&server);
}

#[test]
fn idle_connections_make_room() {
    let server = Running::start(Limits {
        connections: 8,
        ..Limits::default()
    });
    let idle: Vec<_> = (0..32).map(|_| server.connect()).collect();
    assert_answers(&server);
    drop(idle);
}

/// Asks for a snapshot, which the backend holds.
fn begin_snapshot(server: &Running) -> UnixStream {
    let mut stream = server.connect();
    let body = r#"{"destination_url":"file:///s"}"#;
    let head = "PUT /api/v1/vm.snapshot HTTP/1.1\r\nHost: localhost\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).expect("it is sent");
    stream
}

#[test]
fn slow_calls_do_not_delay_questions() {
    let server = Running::start(Limits::default());
    let snapshots: Vec<_> = (0..12).map(|_| begin_snapshot(&server)).collect();
    server.wait_until(|backend| backend.held() == (12, 0));
    for _ in 0..20 {
        assert_answers(&server);
    }
    server.backend.release();
    for mut snapshot in snapshots {
        let mut status = [0; 12];
        snapshot.read_exact(&mut status).expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 204");
    }
}

#[test]
fn clients_that_leave_slow_calls_make_room() {
    let server = Running::start(IMPATIENT);
    for round in 1..=3 {
        let snapshots: Vec<_> = (0..8).map(|_| begin_snapshot(&server)).collect();
        server.wait_until(|backend| backend.held().0 == 8 * round);
        drop(snapshots);
        server.wait_until(|backend| backend.held().1 == 8 * round);
        assert_answers(&server);
    }
}

#[test]
fn client_that_only_sends_no_more_gets_its_answer() {
    let server = Running::start(Limits::default());
    let mut snapshot = begin_snapshot(&server);
    snapshot
        .shutdown(Shutdown::Write)
        .expect("it can be closed by half");
    server.wait_until(|backend| backend.held().0 == 1);
    // Longer than it takes to notice a client that has gone.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(server.backend.held(), (1, 0));
    server.backend.release();
    let answer = read_to_close(&mut snapshot);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[test]
fn slow_bodies_make_room() {
    let server = Running::start(Limits {
        connections: 8,
        ..Limits::default()
    });
    let slow: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = server.connect();
            let head = "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 10\r\n\r\n{";
            stream.write_all(head.as_bytes()).expect("it is sent");
            stream
        })
        .collect();
    let start = Instant::now();
    assert_answers(&server);
    assert!(start.elapsed() < Limits::default().body_timeout / 2);
    drop(slow);
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let server = Running::start(Limits::default());
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let client = server.client();
            std::thread::spawn(move || client.ping())
        })
        .collect();
    for client in clients {
        client.join().expect("no panic").expect("an answer");
    }
}

#[test]
fn client_that_does_not_read_is_dropped() {
    let server = Running::start(IMPATIENT);
    let mut stream = server.connect();
    let request = b"GET /api/v1/openapi.json HTTP/1.1\r\n\r\n";
    let start = Instant::now();
    while stream.write_all(request).is_ok() && start.elapsed() < PATIENCE {}
    assert!(start.elapsed() < PATIENCE, "the server never gave up");
    assert_answers(&server);
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let server = Running::start(IMPATIENT);
    for length in [0, 1, 20, 60] {
        let request = b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 100\r\n\r\n{}";
        for _ in 0..20 {
            let mut stream = server.connect();
            let _ = stream.write_all(&request[..length.min(request.len())]);
        }
    }
    assert_answers(&server);
}

#[test]
fn missing_server_is_a_clear_error() {
    let mut server = Running::start(Limits::default());
    server.stop();
    let error = server.client().ping().expect_err("nobody listens");
    assert!(matches!(&error, ClientError::Connect { .. }));
    assert!(
        error.to_string().ends_with("is the VMM running?"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_do_not_stop_the_server(
        bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0..80_usize,
    ) {
        let server = Running::start(IMPATIENT);
        let mut request = b"PUT /api/v1/vm.restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{}".to_vec();
        request.truncate(cut);
        request.extend(bytes);
        let mut stream = server.connect();
        let _ = stream.write_all(&request);
        stream.shutdown(std::net::Shutdown::Write).expect("it is closed");
        let answer = read_to_close(&mut stream);
        prop_assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{}", answer);
        prop_assert!(server.client().ping().is_ok());
    }
}
