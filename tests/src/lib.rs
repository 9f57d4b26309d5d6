//! Harness of the integration tests: builds the bare-metal guest from `resources/guest`, finds the `dormouse`
//! binary, runs VMs from a JSON config and reads what guest and VMM print, always with a deadline.
//!
//! The tests themselves are in `tests/tests/`, one behaviour each. A test that this host cannot run calls
//! [`not_run::not_run`] and returns: it counts as neither pass nor failure.

#![forbid(unsafe_code)]

pub mod api;
pub mod binary;
pub mod capture;
pub mod config;
pub mod exit;
pub mod guest;
pub mod huge_pages;
pub mod not_run;
pub mod snapshot;
pub mod terminal;
pub mod vm;

pub use api::Api;
pub use capture::Capture;
pub use config::{Serial, VmConfig};
pub use exit::Exit;
pub use guest::GuestImages;
pub use huge_pages::HugePages;
pub use not_run::kvm_guest;
pub use snapshot::Snapshot;
pub use terminal::{Job, Terminal};
pub use vm::TestVm;
