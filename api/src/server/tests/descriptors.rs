//! Descriptors that come with a request.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::{Limits, Running};
use crate::request::Request;

const MESSAGE_FDS: usize = 253;

/// Sends `request` in two pieces, with `count` copies of a pipe's end on the first, and returns the status and the other
/// end of the pipe.
fn send(server: &Running, request: &str, count: usize) -> (String, UnixStream) {
    let (kept, sent) = UnixStream::pair().expect("a pair");
    let mut stream = server.connect();
    let fds: Vec<BorrowedFd<'_>> = (0..count).map(|_| sent.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let (first, rest) = request.split_at(request.find("Content-Length").expect("it has a body"));
    let pieces = [IoSlice::new(first.as_bytes())];
    let sent_bytes = rustix::net::sendmsg(&stream, &pieces, &mut control, SendFlags::empty())
        .expect("it is sent");
    assert_eq!(sent_bytes, first.len());
    stream.write_all(rest.as_bytes()).expect("it is sent");
    let mut status = [0; 13];
    stream.read_exact(&mut status).expect("an answer");
    (String::from_utf8_lossy(&status).trim().to_owned(), kept)
}

fn restore_with_one_device() -> String {
    let body = r#"{"source_url":"file:///s","vfio_fds":[{"id":"v","fd":null}]}"#;
    let head = "PUT /api/v1/vm.restore HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Asserts that no copy of the other end is open any more.
fn assert_closed(mut kept: UnixStream) {
    kept.set_read_timeout(Some(super::PATIENCE))
        .expect("a timeout");
    assert_eq!(kept.read(&mut [0]).expect("the other end is closed"), 0);
}

#[test]
fn descriptors_reach_the_backend_with_their_request() {
    let server = Running::start(Limits::default());
    let (status, kept) = send(&server, &restore_with_one_device(), 2);
    assert_eq!(status, "HTTP/1.1 204");
    assert!(matches!(
        server.backend.seen()[..],
        [(Request::Restore(_), 2)]
    ));
    assert_closed(kept);
}

#[test]
fn wrong_number_of_descriptors_is_refused_and_all_are_closed() {
    let server = Running::start(Limits::default());
    for count in [1, 3, 65, MESSAGE_FDS] {
        let (status, kept) = send(&server, &restore_with_one_device(), count);
        assert_eq!(status, "HTTP/1.1 400", "{count} descriptors");
        assert_closed(kept);
    }
    assert_eq!(server.backend.seen(), []);
}

#[test]
fn descriptors_of_other_requests_are_closed() {
    let server = Running::start(Limits::default());
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\n";
    let (status, kept) = send(&server, &format!("{head}Content-Length: 2\r\n\r\n{{}}"), 3);
    assert_eq!(status, "HTTP/1.1 204");
    assert!(matches!(
        server.backend.seen()[..],
        [(Request::Create(_), 0)]
    ));
    assert_closed(kept);
}
