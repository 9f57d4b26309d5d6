//! A PCI function of the host, given to a guest with VFIO.
//!
//! `function` puts the parts together, `open` builds it. `plan` decides from the device's own bytes which registers the guest
//! finds (with `capabilities` as its table, and `write_back` for what the device is told again), `config` carries that out on each access and keeps the shadow true, `bars`
//! makes the BARs answer where the guest put them (`layout`: all functions' together; `areas`: what of them is mapped; `window`: the rest), `interrupts`
//! makes the device follow the guest's interrupt registers, `state` is what a snapshot holds, `migration` is sleep and wake.
//! What the function needs of the host are the traits in `host`; `hardware` counts what fails there.
//!
//! The machine calls it: guest accesses arrive on vCPU threads, several at a time; effects of configuration writes are applied
//! by the thread that wrote; everything else runs while no vCPU does.
//!
//! Lock order, outermost first, each optional: migration, BARs, interrupts (or the list of assigned BARs), shadow of
//! configuration space; the locks of buses and of the host's traits are inner to all of them. No lock is held while a guest
//! access to a BAR is with the device, so that one that waits there holds up nobody else; one is held during an access to the
//! device's configuration space, which a real bus carries one at a time too.

mod areas;
mod bars;
mod capabilities;
mod config;
mod error;
mod function;
mod hardware;
pub mod host;
mod interrupts;
mod layout;
pub mod migration;
mod open;
mod plan;
mod state;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::single_range_in_vec_init, reason = "areas are lists of ranges")]
#[allow(
    missing_docs,
    reason = "tests set and read these, and their names say what"
)]
pub mod testing;
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "areas are lists of ranges")]
mod tests;
mod window;
mod write_back;

pub use bars::{BarSpaces, PlaceError};
pub use error::{Error, InterruptError};
pub use function::VfioFunction;
pub use hardware::FaultCounters;
pub use migration::SnapshotBlock;
pub use open::{VfioDeps, VfioSpec};
pub use state::{BarAddressState, IdentityMismatch, IdentityState, VfioFunctionState};
