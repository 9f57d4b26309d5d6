//! What a process or a guest prints, collected by a thread as it comes (or read from a file that grows), and
//! waited for with a deadline.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(2);

/// Output so far, shared with the thread that reads it.
#[derive(Clone, Debug)]
pub struct Capture {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Stream {
        bytes: Arc<Mutex<Vec<u8>>>,
        reader: Arc<thread::JoinHandle<()>>,
    },
    File(PathBuf),
}

impl Capture {
    /// Reads `from` to its end in a thread.
    pub fn stream(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            // A pseudo-terminal ends with EIO and not with an empty read.
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend_from_slice(&chunk[..n]);
            }
        });
        Self {
            source: Source::Stream {
                bytes,
                reader: Arc::new(reader),
            },
        }
    }

    /// Reads the file anew at each look; a missing file is empty.
    pub fn file(path: PathBuf) -> Self {
        Self {
            source: Source::File(path),
        }
    }

    /// Everything so far, carriage returns left out.
    pub fn text(&self) -> String {
        let bytes = match &self.source {
            Source::Stream { bytes, .. } => {
                bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
            }
            Source::File(path) => fs::read(path).unwrap_or_default(),
        };
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until the stream has ended, so that nothing more can come; at most `timeout`, for a stream that a
    /// process left behind keeps open.
    pub fn wait_for_end(&self, timeout: Duration) {
        let Source::Stream { reader, .. } = &self.source else {
            return;
        };
        let deadline = Instant::now() + timeout;
        while !reader.is_finished() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    }

    /// Waits until `done` gives a value for the text so far.
    ///
    /// # Errors
    /// The text, when `timeout` is over.
    pub fn wait_for<T>(
        &self,
        timeout: Duration,
        mut done: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + timeout;
        loop {
            let text = self.text();
            if let Some(value) = done(&text) {
                return Ok(value);
            }
            if Instant::now() > deadline {
                return Err(text);
            }
            thread::sleep(POLL);
        }
    }

    /// The first whole line with `needle` in it, once it is there.
    ///
    /// # Errors
    /// The text, when `timeout` is over.
    pub fn line(&self, timeout: Duration, needle: &str) -> Result<String, String> {
        self.wait_for(timeout, |text| whole_line(text, needle))
    }
}

fn whole_line(text: &str, needle: &str) -> Option<String> {
    let line = text
        .split_inclusive('\n')
        .find(|line| line.contains(needle))?;
    line.strip_suffix('\n').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_only_when_it_is_whole() {
        assert_eq!(whole_line("a=1\nb=2", "b="), None);
        assert_eq!(whole_line("a=1\nb=2\n", "b="), Some("b=2".to_owned()));
    }

    #[test]
    fn a_stream_that_ends_without_the_line_gives_its_text() {
        let capture = Capture::stream(&b"one\r\ntwo\n"[..]);
        let wait = Duration::from_secs(5);
        assert_eq!(capture.line(wait, "two"), Ok("two".to_owned()));
        assert_eq!(
            capture.line(Duration::ZERO, "three"),
            Err("one\ntwo\n".to_owned())
        );
    }
}
