//! What goes to standard error: the log, and the chain of reasons when a command fails.

use std::error::Error;
use std::fmt::Write;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::cli::LogLevel;
use crate::log_writer::LogWriter;
use crate::progress_bar;

/// How long the end of the process waits for a slow reader of its last lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

static WRITER: OnceLock<LogWriter> = OnceLock::new();

fn writer() -> &'static LogWriter {
    WRITER.get_or_init(LogWriter::new)
}

/// One line of the log; it comes in one piece.
struct Line;

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match progress_bar::before_line() {
            b"" => writer().line(bytes),
            erase => writer().line(&[erase, bytes].concat()),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends the log to standard error.
pub fn start_log(level: LogLevel) {
    // Now, since later there may be a filter that forbids to open anything.
    writer();
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from(level))
        .with_writer(|| Line)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}

/// Prints `error` and everything that caused it as one line.
pub fn print_chain(error: &(dyn Error + 'static)) {
    writer().line(format!("{}\n", chain(error)).as_bytes());
}

/// Waits a little for whoever reads the log. For the end of the process.
pub fn finish() {
    writer().flush(FLUSH_LIMIT);
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
