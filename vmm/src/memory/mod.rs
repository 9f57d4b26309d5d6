//! Guest RAM: how it is backed on the host and where the guest sees it, how it is put into a snapshot and taken back.

mod dump;
mod load;
pub(crate) mod parallel;
mod ram;
mod resident;
mod slots;

pub use dump::{DumpError, Dumped, dump};
pub use load::{LoadError, RestoreMode};
pub use ram::{Error, HugePages, Ram, available_bytes};
pub(crate) use resident::data_ranges;
pub use slots::SlotAllocator;

/// Who follows a long piece of work on memory, from several threads at once.
pub trait Observer: Sync {
    /// Another `bytes` bytes are dealt with.
    fn advance(&self, bytes: u64);

    /// Whether to stop as soon as possible; asked every few MiB.
    fn is_cancelled(&self) -> bool;
}

/// Nobody follows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn advance(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}
