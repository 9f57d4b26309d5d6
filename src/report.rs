//! What goes to standard error: the log, and the chain of reasons when a command fails.

use std::error::Error;
use std::fmt::Write;

use tracing::level_filters::LevelFilter;

use crate::cli::LogLevel;

/// Sends the log to standard error.
pub fn start_log(level: LogLevel) {
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from(level))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}

/// Prints `error` and everything that caused it as one line.
pub fn print_chain(error: &(dyn Error + 'static)) {
    eprintln!("{}", chain(error));
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot boot")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_cause_is_printed_once_and_in_order() {
        let error = Outer(std::io::Error::other("no kernel"));
        assert_eq!(chain(&error), "error: cannot boot: no kernel");
    }
}
