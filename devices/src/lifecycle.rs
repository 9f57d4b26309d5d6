//! How the state of a device is saved: typed, versioned, and only while the machine stands still.
//!
//! A device implements [`Save`]; its counterpart is the device's own `restore` constructor, which
//! takes the state and the same dependencies as `new`, so that there is one construction path and
//! no state is ever set on a live device. States are hostile input: constructors check them.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Proof that no vCPU runs and no device works.
///
/// The machine's pause guard alone creates it, and lends it out for as long as it lives.
#[derive(Debug)]
pub struct Quiesced(());

impl Quiesced {
    /// Declares the machine quiet. To be called by the owner of the vCPU threads only, after the
    /// last of them is parked.
    pub fn declare() -> Self {
        Self(())
    }
}

/// A plain value that holds a device's state in a snapshot.
pub trait SavedState: Serialize + DeserializeOwned {
    /// Names the kind of device, once and for all.
    const KIND: &'static str;
    /// Version of the layout. A shipped version never changes.
    const VERSION: u32;
}

/// A device whose state can be saved.
pub trait Save {
    /// What is saved.
    type State: SavedState;

    /// Copies the state out. Leaves the device as it is, since the machine may run on.
    fn save(&self, quiesced: &Quiesced) -> Self::State;
}
