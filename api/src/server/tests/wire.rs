//! The bytes of requests and answers.

use std::io::Write;
use std::time::Duration;

use super::{Limits, Running, check, read_to_close};
use crate::client::ClientError;
use crate::config::VmConfig;
use crate::request::{Request, RestoreRequest, SnapshotRequest};
use crate::response::VmState;

const DONE: &str = "HTTP/1.1 204 \r\nServer: Dormouse API\r\n\r\n";

/// A request in the form that Cloud Hypervisor's client sends.
fn request(method: &str, command: &str, body: &str) -> String {
    let length = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    format!(
        "{method} /api/v1/{command} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{length}\r\n{body}"
    )
}

fn json(status: u16, body: &str) -> String {
    let head = "Server: Dormouse API\r\nContent-Type: application/json\r\nContent-Length: ";
    format!("HTTP/1.1 {status} \r\n{head}{}\r\n\r\n{body}", body.len())
}

#[test]
fn answers_have_the_exact_bytes_that_clients_parse() {
    let server = Running::start(Limits::default());
    let stream = &mut server.connect();
    check(stream, &request("PUT", "vm.pause", ""), DONE);
    check(
        stream,
        &request("PUT", "vm.create", r#"{"payload":{"kernel":"/k"},"new":1}"#),
        DONE,
    );
    let ended = "HTTP/1.1 200 \r\nServer: Dormouse API\r\nContent-Length: 0\r\n\r\n";
    check(stream, &request("PUT", "vmm.shutdown", ""), ended);
    let ping = r#"{"build_version":"v1 \ud83d\udc2d","version":"1","pid":7,"features":["kvm"]}"#;
    check(stream, &request("GET", "vmm.ping", ""), &json(200, ping));
    let error = r#"["Error from API","The VM could not boot","VM config is missing"]"#;
    check(stream, &request("PUT", "vm.boot", ""), &json(404, error));
}

#[test]
fn wrong_requests_get_the_documented_status() {
    let server = Running::start(Limits::default());
    let (bad, none) = (
        json(400, r#"["Bad Request"]"#),
        json(404, r#"["Not Found"]"#),
    );
    for (method, command, body, expected) in [
        ("GET", "vm.nothing", "", &none),
        ("PUT", "vm.nothing", "{}", &none),
        ("GET", "../../etc/passwd", "", &none),
        ("PUT", "vm.info", "", &bad),
        ("GET", "vm.boot", "", &bad),
        ("POST", "vm.boot", "", &bad),
        ("PATCH", "vm.boot", "", &bad),
        ("DELETE", "vm.delete", "", &bad),
        ("PUT", "vm.pause", "{}", &bad),
        ("GET", "vmm.ping", "x", &bad),
        ("PUT", "vm.create", "", &bad),
        ("PUT", "vm.snapshot", "", &bad),
        (
            "PUT",
            "vm.restore",
            r#"{"source_url":"file:///s","vfio_fds":[{"id":"v"}]}"#,
            &bad,
        ),
    ] {
        check(
            &mut server.connect(),
            &request(method, command, body),
            expected,
        );
    }
    assert_eq!(
        server.backend.seen(),
        [],
        "none of them reaches the backend"
    );
}

#[test]
fn unusable_bodies_say_what_is_wrong() {
    let server = Running::start(Limits::default());
    let json_error = |cause: &str| json(400, &format!(r#"["Failed to deserialize JSON",{cause}]"#));
    for (command, body, expected) in [
        ("vm.create", " ", json_error(r#""the JSON text is empty""#)),
        (
            "vm.create",
            "{\"cpus\":}",
            json_error(r#""the text is not valid JSON","expected value at line 1 column 9""#),
        ),
        (
            "vm.snapshot",
            "{}",
            json_error(
                r#""cannot read the JSON text","missing field `destination_url` at line 1 column 2""#,
            ),
        ),
        (
            "vm.create",
            r#"{"net":[{}]}"#,
            json(
                400,
                "[\"Error from API\",\"The VM could not be created\",\
                 \"net[0]: virtio-net is not implemented by Dormouse; remove it\"]",
            ),
        ),
    ] {
        check(
            &mut server.connect(),
            &request("PUT", command, body),
            &expected,
        );
    }
}

#[test]
fn request_in_four_pieces_is_understood() {
    let server = Running::start(Limits::default());
    let body = r#"{"destination_url":"file:///s"}"#;
    server.backend.release();
    let mut stream = server.connect();
    for piece in [
        "PUT /api/v1/vm.snapshot HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n".to_owned(),
        format!("Content-Length: {}\r\n", body.len()),
        "\r\n".to_owned(),
    ] {
        stream.write_all(piece.as_bytes()).expect("it is sent");
        std::thread::sleep(Duration::from_millis(20));
    }
    check(&mut stream, body, DONE);
    let expected = SnapshotRequest {
        destination_url: "file:///s".to_owned(),
    };
    assert_eq!(server.backend.seen(), [(Request::Snapshot(expected), 0)]);
}

#[test]
fn chunked_body_is_understood() {
    let server = Running::start(Limits::default());
    server.backend.release();
    let head = "PUT /api/v1/vm.snapshot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "1f\r\n{\"destination_url\":\"file:///s\"}\r\n0\r\n\r\n";
    check(&mut server.connect(), &format!("{head}{body}"), DONE);
}

#[test]
fn client_that_closes_its_sending_side_is_answered() {
    let server = Running::start(Limits::default());
    let mut stream = server.connect();
    stream
        .write_all(request("PUT", "vm.pause", "").as_bytes())
        .expect("it is sent");
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("it is closed");
    assert!(read_to_close(&mut stream).starts_with("HTTP/1.1 204 \r\n"));
}

#[test]
fn openapi_document_is_served() {
    let server = Running::start(Limits::default());
    check(
        &mut server.connect(),
        &request("GET", "openapi.json", ""),
        &json(200, crate::openapi::DOCUMENT),
    );
    assert!(crate::openapi::DOCUMENT.is_ascii());
}

#[test]
fn own_client_makes_every_kind_of_call() {
    let server = Running::start(Limits::default());
    server.backend.release();
    let client = server.client();
    assert_eq!(
        client.ping().expect("an answer").build_version,
        "v1 \u{1f42d}"
    );
    let info = client.info().expect("an answer");
    assert_eq!(
        (info.state, info.config),
        (VmState::Created, VmConfig::default())
    );
    let config =
        br#"{"payload":{"kernel":"/k"},"devices":[{"path":"/d","snapshot":"discard-state"}]}"#;
    let calls = [
        Request::Create(Box::new(
            VmConfig::from_file_bytes(config).expect("it can be read"),
        )),
        Request::Snapshot(SnapshotRequest {
            destination_url: "file:///s".to_owned(),
        }),
        Request::Restore(RestoreRequest {
            source_url: "file:///s".to_owned(),
            verify: true,
            ..Default::default()
        }),
        Request::VmmShutdown,
        Request::Cancel,
    ];
    for call in &calls {
        assert!(client.call(call).expect("it succeeds").is_empty());
    }
    let seen: Vec<_> = server
        .backend
        .seen()
        .into_iter()
        .skip(2)
        .map(|(request, _)| request)
        .collect();
    assert_eq!(seen, calls);
    match client.call(&Request::Boot) {
        Err(ClientError::Refused {
            command: "vm.boot",
            status: 404,
            chain,
        }) => assert_eq!(chain.len(), 3),
        other => panic!("the boot is refused: {other:?}"),
    }
}

#[test]
fn shutdown_sends_the_answer_under_way_and_removes_the_socket() {
    let mut server = Running::start(Limits::default());
    let mut stream = server.connect();
    let body = r#"{"destination_url":"file:///s"}"#;
    stream
        .write_all(request("PUT", "vm.snapshot", body).as_bytes())
        .expect("it is sent");
    server.await_call();
    server.end.shutdown();
    std::thread::sleep(Duration::from_millis(100));
    server.backend.release();
    let answer = read_to_close(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 204 \r\n"), "{answer}");
    assert!(
        answer.contains("Connection: close\r\n"),
        "the client is told: {answer}"
    );
    let path = server.path();
    server.stop();
    assert!(!path.exists());
    assert!(matches!(
        server.client().ping(),
        Err(ClientError::Connect { .. })
    ));
}

#[test]
fn server_ends_although_a_call_hangs() {
    let server = Running::start(Limits::default());
    let mut stream = server.connect();
    let body = r#"{"destination_url":"file:///s"}"#;
    stream
        .write_all(request("PUT", "vm.snapshot", body).as_bytes())
        .expect("it is sent");
    server.await_call();
    server.end.shutdown();
    // The call is released only when the server is dropped; it must have closed the connection before.
    assert_eq!(read_to_close(&mut stream), "");
}
