//! What this host can run. A test that cannot run here says so, and is neither passed nor failed.
//!
//! `DORMOUSE_NOT_RUN_LOG` names a file that gets one line per such test, `name<TAB>reason`, so that
//! `cargo xtask test` can list them: cargo hides the output of tests that return normally.

use std::fs::OpenOptions;
use std::io::Write;

use kvm_ioctls::Kvm;

use crate::guest::{self, GuestImages};

/// Whether a VM can be created on `/dev/kvm`.
///
/// # Errors
/// The reason, for people.
pub fn kvm_available() -> Result<(), String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
    kvm.create_vm()
        .map(drop)
        .map_err(|error| format!("/dev/kvm creates no VM: {error}"))
}

/// Records that the calling test cannot run on this host.
pub fn not_run(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unnamed");
    println!("{test}: not run: {reason}");
    let Some(log) = std::env::var_os("DORMOUSE_NOT_RUN_LOG") else {
        return;
    };
    // One write per line keeps lines of concurrent tests whole.
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .and_then(|mut file| file.write_all(format!("{test}\t{reason}\n").as_bytes()));
    if let Err(error) = written {
        panic!("cannot record a test that was not run in {log:?}: {error}");
    }
}

/// The guest's images if this host has KVM, else records the test as not run.
///
/// # Panics
/// When the guest does not build: that is a defect and not a property of the host.
pub fn kvm_guest() -> Option<GuestImages> {
    if let Err(reason) = kvm_available() {
        not_run(&reason);
        return None;
    }
    Some(guest::build().unwrap_or_else(|error| panic!("{error}")))
}
