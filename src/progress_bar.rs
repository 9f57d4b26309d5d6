//! Progress bars of long actions, on standard error and only when that is a terminal.
//!
//! A line looks like `restore: memory:  45%|████▌     | 230M/512M [00:01<00:01, 221MB/s]`.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use dormouse_api::response::{Operation, Progress};
use dormouse_vmm::memory::Observer;
use kdam::{Bar, BarExt};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Erases the line that the cursor is in (ECMA-48: EL).
const ERASE_LINE: &[u8] = b"\r\x1b[K";

/// Whether the cursor may be behind a bar.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// What has to be written before a line of text, so that it takes the place of the bar; the bar comes back below it.
pub fn before_line() -> &'static [u8] {
    if SHOWN.load(Ordering::Relaxed) {
        ERASE_LINE
    } else {
        b""
    }
}

/// How many bytes of an action are dealt with; gone from the screen when dropped.
pub struct ByteBar(Mutex<Bar>);

impl ByteBar {
    /// A bar that draws nothing yet, and never does where standard error is no terminal.
    pub fn new(total: u64) -> Self {
        let mut bar = Bar::new(count(total));
        bar.unit = "B".to_owned();
        bar.unit_scale = true;
        bar.unit_divisor = 1024;
        bar.mininterval = TICK.as_secs_f32();
        bar.disable = !stderr().is_terminal();
        Self(Mutex::new(bar))
    }

    /// Shows where `progress` is; nothing while no action is under way.
    fn show(&self, progress: &Progress) {
        let Some(operation) = progress.operation else {
            return;
        };
        let operation = match operation {
            Operation::Snapshot => "snapshot",
            Operation::Restore => "restore",
        };
        let phase = progress.phase.as_deref().unwrap_or("begins");
        self.change(|bar| {
            bar.set_description(format!("{operation}: {phase}"));
            bar.total = count(progress.bytes_total.max(progress.bytes_done));
            count(progress.bytes_done)
        });
    }

    /// Draws the bar at the count that `change` answers. The library takes no count beyond the total.
    fn change(&self, change: impl FnOnce(&mut Bar) -> usize) {
        let mut bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = change(&mut bar).min(bar.total);
        // First, so that no line of the log comes between; one too many is erased without harm.
        SHOWN.fetch_or(!bar.disable, Ordering::Relaxed);
        // A terminal that went away is no reason to stop the action.
        let _ = bar.update_to(counter);
    }
}

impl Observer for ByteBar {
    fn advance(&self, bytes: u64) {
        self.change(|bar| bar.counter.saturating_add(count(bytes)));
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Drop for ByteBar {
    fn drop(&mut self) {
        let bar = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if SHOWN.swap(false, Ordering::Relaxed) {
            let _ = bar.writer.print(ERASE_LINE);
        }
    }
}

/// What the library counts in.
fn count(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Does `work` and meanwhile draws what `ask` answers, which may be nothing.
pub fn during<T>(ask: impl Fn() -> Option<Progress> + Send, work: impl FnOnce() -> T) -> T {
    if !stderr().is_terminal() {
        return work();
    }
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let drawing = Builder::new().spawn_scoped(scope, move || {
            let bar = ByteBar::new(0);
            // Nothing is ever sent: the channel closes when the work is done.
            while is_done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if let Some(progress) = ask() {
                    bar.show(&progress);
                }
            }
        });
        if let Err(error) = drawing {
            tracing::debug!("no thread for a progress bar: {error}");
        }
        let result = work();
        drop(done);
        result
    })
}
