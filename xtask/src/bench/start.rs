//! Start of a VM: the time to the guest's first byte, and the VMM's memory once the guest runs.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::bench::contender::{Contender, MEMORY_MIB};
use crate::bench::process_memory::beyond_ram_kib;
use crate::bench::{Value, median};

/// Memory settles quickly; measured too early, pages of the start would be missing.
const SETTLE: Duration = Duration::from_millis(200);

/// Milliseconds from the start of the process to the guest's first output.
pub fn first_output(contender: &Contender, guest: &Path, runs: usize) -> Value {
    // The first run pulls files into the page cache.
    if let Err(reason) = contender.boot(guest) {
        return Value::NotAvailable(reason);
    }
    median(runs, "ms", || {
        Ok(contender.boot(guest)?.first_output.as_secs_f64() * 1e3)
    })
}

/// MiB of memory beyond the guest's RAM.
pub fn memory(contender: &Contender, guest: &Path, runs: usize) -> Value {
    median(runs.min(5), "MiB", || {
        let vm = contender.boot(guest)?;
        thread::sleep(SETTLE);
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", vm.pid()))
            .map_err(|error| format!("smaps cannot be read: {error}"))?;
        Ok(beyond_ram_kib(&smaps, MEMORY_MIB << 10) as f64 / 1024.0)
    })
}
