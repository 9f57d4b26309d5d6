//! Where the BARs of a function answer, in step with what the guest programs, and with the BARs of its neighbours.
//!
//! Two BARs may claim one place, for a moment (sizing, swapping) or for good. The one that is there stays, the other does not
//! answer, and its register keeps what the guest wrote, as in hardware. Whenever a BAR leaves a place, all functions of the
//! machine look whether one of theirs was waiting for it. A thread repeats that while BARs leave, at most [`MAX_ROUNDS`] times: the
//! thread on which the next one leaves begins anew. No two functions' BARs are locked at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::bars::{Bars, PlaceError, Refusal};
use super::config::Config;
use super::error::Error;
use super::hardware::Hardware;
use crate::guest_warn;

/// How often a thread looks for BARs that wait after one left.
const MAX_ROUNDS: u32 = 8;

/// The functions that share address spaces.
#[derive(Default)]
pub(super) struct Neighbours {
    layouts: Mutex<Vec<Weak<Layout>>>,
    /// How often a BAR left its place.
    departures: AtomicU64,
}

impl Neighbours {
    /// A BAR left its place.
    pub fn note_departure(&self) {
        self.departures.fetch_add(1, Ordering::SeqCst);
    }

    fn departures(&self) -> u64 {
        self.departures.load(Ordering::SeqCst)
    }

    fn join(&self, layout: &Arc<Layout>) {
        let mut layouts = self.layouts();
        layouts.retain(|layout| layout.strong_count() > 0);
        layouts.push(Arc::downgrade(layout));
    }

    fn all(&self) -> Vec<Arc<Layout>> {
        self.layouts().iter().filter_map(Weak::upgrade).collect()
    }

    fn layouts(&self) -> MutexGuard<'_, Vec<Weak<Layout>>> {
        // No code panics while it holds the lock; the same goes for the one below.
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The BARs of one function and what they follow.
pub(super) struct Layout {
    hardware: Arc<Hardware>,
    config: Arc<Config>,
    neighbours: Arc<Neighbours>,
    bars: Mutex<Bars>,
}

impl Layout {
    pub fn new(
        hardware: Arc<Hardware>,
        config: Arc<Config>,
        neighbours: &Arc<Neighbours>,
        bars: Bars,
    ) -> Arc<Self> {
        let layout = Arc::new(Self {
            hardware,
            config,
            neighbours: Arc::clone(neighbours),
            bars: Mutex::new(bars),
        });
        neighbours.join(&layout);
        layout
    }

    pub fn bars(&self) -> MutexGuard<'_, Bars> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the BARs of a device that was set up answer where the guest programmed them.
    ///
    /// # Errors
    /// When one cannot be mapped, or one cannot be placed where it answered when its state was saved.
    pub fn set_up(&self) -> Result<(), Error> {
        let mut bars = self.bars();
        let recorded = bars.is_recorded();
        let refused = bars.set_up(&self.config.desired_bars());
        let fatal = |refusal: &Refusal| recorded || is_failure(&refusal.error);
        match refused.into_iter().find(fatal) {
            None => Ok(()),
            Some(Refusal {
                index,
                address,
                previous: _,
                error,
            }) => Err(Error::PlaceBar {
                device: Arc::clone(self.hardware.name()),
                bar: index,
                address,
                source: error,
            }),
        }
    }

    /// Makes the BARs answer where the guest programmed them, and those of all functions that waited for places left by that.
    pub fn follow(&self) {
        let mark = self.mark();
        self.place(true);
        self.settle(mark);
    }

    /// A moment for [`Self::settle`].
    pub fn mark(&self) -> u64 {
        self.neighbours.departures()
    }

    /// Places what waited for places that were left since `mark`.
    pub fn settle(&self, mark: u64) {
        let mut seen = mark;
        for _ in 0..MAX_ROUNDS {
            let now = self.neighbours.departures();
            if now == seen {
                return;
            }
            seen = now;
            for layout in self.neighbours.all() {
                layout.place(false);
            }
        }
    }

    /// What the host cannot map goes back to where it was. `asked` when the guest has just changed something.
    fn place(&self, asked: bool) {
        let mut bars = self.bars();
        // The second round places what the first put back. What it still refuses does not answer.
        for _ in 0..2 {
            let mut put_back = false;
            for Refusal {
                index,
                address,
                previous,
                error,
            } in bars.reconcile(&self.config.desired_bars())
            {
                if is_failure(&error) {
                    self.hardware.report(&error);
                    if let Some(previous) = previous.filter(|previous| *previous != address) {
                        put_back |= self.config.shadow().refuse_bar(index, address, previous);
                    }
                } else if asked {
                    guest_warn!(
                        "{}: {index} does not answer at {address:#x}, where the guest put it: {error}",
                        self.hardware.name()
                    );
                }
            }
            if !put_back {
                break;
            }
        }
    }
}

/// Whether the host failed, and not the guest chose badly.
fn is_failure(error: &PlaceError) -> bool {
    match error {
        PlaceError::Map { .. } => true,
        PlaceError::Taken(_) | PlaceError::NoSuchPort(_) => false,
    }
}
