//! Whole snapshots of small RAM, in every form and with every kind of damage.

mod crash;
mod damage;
mod hostile;
mod round_trip;
mod speed;

use std::io::Write;
use std::path::Path;

use dormouse_api::config::{MemoryConfig, VmConfig};
use dormouse_api::response::{Operation, Phase, Timeline};
use dormouse_devices::lifecycle::{Quiesced, SavedState};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::{SnapshotWriter, WriteError};
use crate::memory::{Ram, Unobserved};

const MIB: u64 = 1 << 20;

/// The state of a device, as one of ours has it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ChipState {
    registers: Vec<u8>,
}

impl SavedState for ChipState {
    const KIND: &'static str = "chip";
    const VERSION: u32 = 3;
}

fn chip() -> ChipState {
    ChipState {
        registers: vec![7, 0, 255],
    }
}

fn config(memory: MemoryConfig) -> VmConfig {
    let mut config = VmConfig::default();
    config.memory = memory;
    config
}

/// 9 MiB: four chunks and a half.
fn small() -> MemoryConfig {
    let mut memory = MemoryConfig::of_size(9 * MIB);
    memory.thp = false;
    memory
}

fn timeline() -> Timeline {
    Timeline {
        operation: Operation::Snapshot,
        started_unix_ms: 1,
        duration_us: 2,
        phases: vec![Phase {
            name: "memory".to_owned(),
            device: None,
            start_us: 0,
            duration_us: 2,
            bytes: 3,
        }],
    }
}

/// Where each test RAM has bytes that are not zero: several places of one chunk, a page across nothing, the last byte.
fn marks(size: u64) -> Vec<u64> {
    vec![0, 4096, 20_480, 2 * MIB + 4095, 7 * MIB, size - 1]
}

fn ram(memory: &MemoryConfig) -> Ram {
    let ram = Ram::new(memory).unwrap();
    for (index, mark) in marks(memory.size).into_iter().enumerate() {
        put(&ram, mark, index as u8 + 1);
    }
    // Touched, and zero again: resident, and still a hole in the file.
    put(&ram, 4 * MIB, 0);
    ram
}

/// A byte of RAM by its offset; the regions are one after the other.
fn put(ram: &Ram, offset: u64, value: u8) {
    ram.memory()
        .write_obj(value, GuestAddress(guest_address(ram, offset)))
        .unwrap();
}

fn guest_address(ram: &Ram, mut offset: u64) -> u64 {
    for (range, _) in ram.regions() {
        let length = range.end - range.start;
        if offset < length {
            return range.start + offset;
        }
        offset -= length;
    }
    panic!("offset beyond RAM");
}

/// Everything in `ram`, by offset.
fn content(ram: &Ram) -> Vec<u8> {
    let mut all = Vec::new();
    for (range, _) in ram.regions() {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        ram.memory()
            .read_slice(&mut bytes, GuestAddress(range.start))
            .unwrap();
        all.extend(bytes);
    }
    all
}

fn stream_bytes() -> Vec<u8> {
    (0..70_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

/// A snapshot of `ram` with a chip and two devices.
fn write(dir: &Path, memory: &MemoryConfig, ram: &Ram) -> Result<(), WriteError> {
    let mut writer = SnapshotWriter::begin(dir)?;
    writer.state("", &chip())?;
    writer.state("second", &chip())?;
    let mut first = writer.device_stream("vfio0")?;
    let empty = writer.device_stream("_vfio1")?;
    first.write_all(&stream_bytes()).unwrap();
    first.finish()?;
    empty.finish()?;
    writer.memory(ram, &Quiesced::declare(), &Unobserved)?;
    writer.finish(&config(memory.clone()), &timeline())
}

/// A directory with a good snapshot of small RAM.
fn snapshot() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &small(), &ram(&small())).unwrap();
    dir
}
