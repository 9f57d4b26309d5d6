//! Guest RAM: how it is backed on the host and where the guest sees it.

mod ram;
mod slots;

pub use ram::{Error, HugePages, Ram};
pub use slots::SlotAllocator;
