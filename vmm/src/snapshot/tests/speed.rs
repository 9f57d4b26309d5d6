//! How fast RAM goes to disk and back, beside a plain copy of the same bytes: a benchmark, run by hand in release mode.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_api::config::MemoryConfig;
use dormouse_devices::lifecycle::Quiesced;
use vm_memory::{Bytes, GuestAddress};

use super::{MIB, config, timeline};
use crate::memory::{Ram, RestoreMode, Unobserved};
use crate::snapshot::{Snapshot, SnapshotWriter};

const SIZE: u64 = 4 << 30;
const USED: u64 = 512 * MIB;
const PIECE: u64 = 2 * MIB;
const ROUNDS: usize = 5;

/// 4 GiB of RAM with 512 MiB in use, in pieces of 2 MiB.
fn partly_used() -> (MemoryConfig, Ram) {
    let mut memory = MemoryConfig::of_size(SIZE);
    // Without transparent huge pages a restore takes as much memory as was in use.
    memory.thp = std::env::var_os("DORMOUSE_BENCH_NO_THP").is_none();
    let ram = Ram::new(&memory).unwrap();
    for piece in 0..USED / PIECE {
        let mut state = piece + 1;
        let bytes: Vec<u8> = (0..PIECE / 8)
            .flat_map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state.to_ne_bytes()
            })
            .collect();
        // The first 3 GiB are one region.
        let address = GuestAddress(piece * 6 * PIECE);
        ram.memory().write_slice(&bytes, address).unwrap();
    }
    (memory, ram)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

/// What `dd conv=fsync` does.
fn plain_copy(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap();
    for block in bytes.chunks(MIB as usize) {
        file.write_all(block).unwrap();
    }
    file.sync_all().unwrap();
}

fn plain_read(path: &Path) {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; MIB as usize];
    while file.read(&mut buffer).unwrap() > 0 {}
}

/// What a restore cannot beat with one thread: the memory that is read into is new.
fn plain_load(path: &Path) {
    let mut buffer = vec![0; USED as usize];
    File::open(path).unwrap().read_exact(&mut buffer).unwrap();
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let median = times[times.len() / 2];
    let rate = USED as f64 / 1e6 / median.as_secs_f64();
    println!(
        "{what:32} {:9.1} ms {rate:9.0} MB/s",
        median.as_secs_f64() * 1e3
    );
}

#[test]
#[ignore = "a benchmark: cargo test --release -p dormouse-vmm --lib -- --ignored --nocapture speed"]
fn speed() {
    // Not in a file system in memory, if possible.
    let place = std::env::var_os("DORMOUSE_BENCH_DIR").unwrap_or_else(|| "/var/tmp".into());
    let (memory, ram) = partly_used();
    let bytes = vec![0x5a; USED as usize];
    let mut times: [Vec<Duration>; 8] = Default::default();
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir_in(&place).unwrap();
        let copy = dir.path().join("copy");
        times[0].push(timed(|| plain_copy(&copy, &bytes)).1);
        times[1].push(timed(|| plain_read(&copy)).1);
        plain_load(&copy);
        times[7].push(timed(|| plain_load(&copy)).1);
        let snapshot = dir.path().join("snapshot");
        let mut writer = SnapshotWriter::begin(&snapshot).unwrap();
        let dump = || {
            writer
                .memory(&ram, &Quiesced::declare(), &Unobserved)
                .unwrap()
        };
        let (written, taken) = timed(dump);
        assert_eq!(written, USED);
        times[2].push(taken);
        let finish = || writer.finish(&config(memory.clone()), &timeline()).unwrap();
        times[3].push(taken + timed(finish).1);
        let snapshot = Snapshot::open(&snapshot).unwrap();
        for (mode, index) in [(RestoreMode::Eager, 4), (RestoreMode::OnDemand, 5)] {
            let restore = || Ram::restore(&memory, &snapshot, mode, &Unobserved).unwrap();
            // A first one takes what the host may charge for memory that it never gave out before.
            drop(restore());
            times[index].push(timed(restore).1);
        }
        times[6].push(timed(|| snapshot.verify_all(&Unobserved).unwrap()).1);
    }
    let [copy, read, dump, finish, eager, on_demand, verify, load] = times;
    report("plain copy, synced", copy);
    report("plain read from the page cache", read);
    report("plain read into new memory", load);
    report("memory file written", dump);
    report("snapshot finished", finish);
    report("restore, eager", eager);
    report("restore, on demand", on_demand);
    report("verify", verify);
}
