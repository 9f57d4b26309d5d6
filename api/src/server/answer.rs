//! Answers in the exact bytes that clients of Cloud Hypervisor's API parse.
//!
//! Those want a status line without a reason phrase, headers in title case (set where the connection is made), a body of
//! ASCII only, errors as an array of strings, and 204 without a length for calls that return nothing.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::ext::ReasonPhrase;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::{Response as HttpResponse, StatusCode};
use serde::Serialize;

use super::ascii_json;
use crate::backend::ApiError;
use crate::response::Response;

/// An answer on its way to the client.
pub(super) type Answer = HttpResponse<Full<Bytes>>;

/// The answer to a call that succeeded.
pub(super) fn of_response(response: &Response) -> Answer {
    match response {
        Response::Done => empty(StatusCode::NO_CONTENT),
        Response::Ping(ping) => json(StatusCode::OK, ping),
        Response::Info(info) => json(StatusCode::OK, info),
        Response::Counters(counters) => json(StatusCode::OK, counters),
        Response::Progress(progress) => json(StatusCode::OK, progress),
    }
}

/// The answer to a call that was refused or failed.
pub(super) fn of_error(error: &ApiError) -> Answer {
    let status =
        StatusCode::from_u16(error.status().code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, error.chain())
}

/// The answer for a path that names no command.
pub(super) fn not_found() -> Answer {
    json(StatusCode::NOT_FOUND, &["Not Found"])
}

/// An answer without a body; a status other than 204 then has a length of 0.
pub(super) fn empty(status: StatusCode) -> Answer {
    with_body(status, Bytes::new())
}

/// A JSON text that is sent as it is; it has to be ASCII.
pub(super) fn document(text: &'static str) -> Answer {
    as_json(with_body(
        StatusCode::OK,
        Bytes::from_static(text.as_bytes()),
    ))
}

/// Ends the connection after this answer, because the rest of the request was not read.
pub(super) fn closing(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    match ascii_json::to_vec(value) {
        Ok(body) => as_json(with_body(status, Bytes::from(body))),
        Err(error) => {
            // Only a path that is no Unicode text gets here: JSON cannot carry it.
            tracing::error!("cannot write an answer as JSON: {error}");
            let text = r#"["Error from API","The answer cannot be written as JSON"]"#;
            as_json(with_body(
                StatusCode::INTERNAL_SERVER_ERROR,
                Bytes::from_static(text.as_bytes()),
            ))
        }
    }
}

fn as_json(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn with_body(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = HttpResponse::new(Full::new(body));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(SERVER, HeaderValue::from_static("Dormouse API"));
    answer
        .extensions_mut()
        .insert(ReasonPhrase::from_static(b""));
    answer
}
