//! Progress bars of long actions, on standard error and only when that is a terminal.

use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::Builder;
use std::time::Duration;

use dormouse_api::response::{Operation, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Does `work` and meanwhile draws what `ask` answers, which may be nothing.
pub fn during<T>(ask: impl Fn() -> Option<Progress> + Send, work: impl FnOnce() -> T) -> T {
    if !stderr().is_terminal() {
        return work();
    }
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let drawing = Builder::new().spawn_scoped(scope, move || {
            let bar = ProgressBar::new(0).with_style(style());
            // Nothing is ever sent: the channel closes when the work is done.
            while is_done.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if let Some(progress) = ask() {
                    draw(&bar, &progress);
                }
            }
            bar.finish_and_clear();
        });
        if let Err(error) = drawing {
            tracing::debug!("no thread for a progress bar: {error}");
        }
        let result = work();
        drop(done);
        result
    })
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:24} {bar:32} {bytes:>10} of {total_bytes} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let Some(operation) = progress.operation else {
        return;
    };
    let operation = match operation {
        Operation::Snapshot => "snapshot",
        Operation::Restore => "restore",
    };
    let phase = progress.phase.as_deref().unwrap_or("begins");
    bar.set_message(format!("{operation}: {phase}"));
    bar.set_length(progress.bytes_total.max(progress.bytes_done));
    bar.set_position(progress.bytes_done);
}
