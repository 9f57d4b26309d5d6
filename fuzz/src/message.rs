//! What every error message must keep to, whatever input it quotes: it goes to a user's terminal and into a log.

use std::error::Error;

/// Longest message of one error, in bytes; a path into nested JSON is the longest thing quoted.
const MESSAGE_LIMIT_BYTES: usize = 64 << 10;

/// Panics when a message in the chain of `error` is empty, long, or could control a terminal.
pub fn check_chain(error: &dyn Error) {
    let mut next = Some(error);
    while let Some(error) = next {
        check(&error.to_string());
        next = error.source();
    }
}

/// Panics when `message` is empty, long, or could control a terminal.
pub fn check(message: &str) {
    assert!(!message.is_empty(), "an error without a message");
    assert!(
        message.len() <= MESSAGE_LIMIT_BYTES,
        "a message of {} bytes",
        message.len()
    );
    assert!(
        !message.chars().any(char::is_control),
        "a message with control characters: {message:?}"
    );
}
