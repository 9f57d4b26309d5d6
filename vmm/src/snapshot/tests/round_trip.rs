//! What goes in comes out, whatever backs RAM, and costs only what is in use.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_api::config::MemoryConfig;
use dormouse_devices::lifecycle::Quiesced;

use super::{
    ChipState, MIB, chip, config, content, marks, put, ram, small, snapshot, stream_bytes,
};
use super::{timeline, write};
use crate::memory::{LoadError, Observer, Ram, RestoreMode, Unobserved};
use crate::snapshot::steps::{Step, record};
use crate::snapshot::{ReadError, Snapshot, SnapshotWriter, WriteError};

#[test]
fn state_streams_and_description_come_back() {
    let dir = snapshot();
    let snapshot = Snapshot::open(dir.path()).unwrap();
    snapshot.verify_all(&Unobserved).unwrap();
    assert_eq!(snapshot.config(), &config(small()));
    assert_eq!(snapshot.manifest().timeline, timeline());
    assert_eq!(
        snapshot.instances("chip").collect::<Vec<_>>(),
        ["", "second"]
    );
    assert_eq!(
        snapshot.stream_ids().collect::<Vec<_>>(),
        ["_vfio1", "vfio0"]
    );
    for instance in ["", "second"] {
        assert_eq!(snapshot.state::<ChipState>(instance).unwrap(), chip());
    }
    for (id, wanted) in [("vfio0", stream_bytes()), ("_vfio1", Vec::new())] {
        let mut stream = snapshot.device_stream(id).unwrap();
        assert_eq!(stream.length(), wanted.len() as u64);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert!(bytes == wanted, "{id}");
    }
    snapshot.finish().unwrap();
}

#[test]
fn what_nobody_takes_is_an_error() {
    let dir = snapshot();
    let opened = Snapshot::open(dir.path()).unwrap();
    opened.state::<ChipState>("").unwrap();
    opened.state::<ChipState>("second").unwrap();
    let mut begun = opened.device_stream("vfio0").unwrap();
    begun.read_exact(&mut [0; 100]).unwrap();
    opened.verify_all(&Unobserved).unwrap();
    let error = opened.finish().unwrap_err();
    assert!(
        matches!(&error, ReadError::Unconsumed { instance, .. } if instance == "_vfio1"),
        "{error}"
    );
    let opened = Snapshot::open(dir.path()).unwrap();
    let error = opened.state::<ChipState>("third").unwrap_err();
    assert!(matches!(error, ReadError::MissingSection { .. }), "{error}");
}

/// Every backing that the host can provide.
fn backings() -> Vec<(&'static str, MemoryConfig)> {
    let mut shared = small();
    shared.shared = true;
    let mut thp = small();
    thp.thp = true;
    let mut prefault = small();
    prefault.prefault = true;
    let mut huge = MemoryConfig::of_size(10 * MIB);
    (huge.hugepages, huge.hugepage_size) = (true, Some(2 << 20));
    let mut backings = vec![
        ("anonymous", small()),
        ("memfd", shared),
        ("transparent huge pages", thp),
        ("prefaulted", prefault),
    ];
    // Room for the original and the copy.
    if Ram::new(&huge).and_then(|_first| Ram::new(&huge)).is_ok() {
        backings.push(("hugetlb", huge));
    } else {
        eprintln!("hugetlb: not run: the host has no 10 free huge pages of 2 MiB");
    }
    backings
}

#[test]
fn ram_of_every_backing_comes_back_in_both_modes() {
    for (name, memory) in backings() {
        let dir = tempfile::tempdir().unwrap();
        let original = ram(&memory);
        write(dir.path(), &memory, &original).unwrap();
        let snapshot = Snapshot::open(dir.path()).unwrap();
        for mode in [RestoreMode::Eager, RestoreMode::OnDemand] {
            let restored = Ram::restore(&memory, &snapshot, mode, &Unobserved).unwrap();
            assert!(content(&restored) == content(&original), "{name} {mode:?}");
        }
    }
}

#[test]
fn ram_on_both_sides_of_the_32_bit_hole_comes_back() {
    let mut memory = MemoryConfig::of_size((3 << 30) + 5 * MIB);
    memory.thp = false;
    let dir = tempfile::tempdir().unwrap();
    let original = ram(&memory);
    put(&original, (3 << 30) - 1, 100);
    put(&original, 3 << 30, 101);
    write(dir.path(), &memory, &original).unwrap();
    let snapshot = Snapshot::open(dir.path()).unwrap();
    for mode in [RestoreMode::Eager, RestoreMode::OnDemand] {
        let restored = Ram::restore(&memory, &snapshot, mode, &Unobserved).unwrap();
        let offsets = marks(memory.size)
            .into_iter()
            .chain([(3 << 30) - 1, 3 << 30]);
        for offset in offsets {
            assert_eq!(
                byte(&restored, offset),
                byte(&original, offset),
                "{offset:#x} {mode:?}"
            );
        }
    }
}

fn byte(ram: &Ram, offset: u64) -> u8 {
    use vm_memory::{Bytes, GuestAddress};
    let address = GuestAddress(super::guest_address(ram, offset));
    ram.memory().read_obj(address).unwrap()
}

#[test]
fn the_memory_file_takes_the_disk_space_of_what_is_in_use() {
    let dir = snapshot();
    let file = std::fs::metadata(dir.path().join("memory.bin")).unwrap();
    assert_eq!(file.len(), 9 * MIB);
    // Six pages are not zero; a file system may count its own blocks too.
    assert!(file.blocks() * 512 <= 16 * 4096, "{} blocks", file.blocks());
}

#[test]
fn a_vm_restored_on_demand_can_be_put_to_sleep_again() {
    let first = snapshot();
    let opened = Snapshot::open(first.path()).unwrap();
    let awake = Ram::restore(&small(), &opened, RestoreMode::OnDemand, &Unobserved).unwrap();
    put(&awake, 6 * MIB, 42);
    put(&awake, 0, 0);
    let second = tempfile::tempdir().unwrap();
    write(second.path(), &small(), &awake).unwrap();
    drop(first);
    let opened = Snapshot::open(second.path()).unwrap();
    opened.verify_all(&Unobserved).unwrap();
    let again = Ram::restore(&small(), &opened, RestoreMode::Eager, &Unobserved).unwrap();
    let mut wanted = content(&ram(&small()));
    wanted[6 << 20] = 42;
    wanted[0] = 0;
    assert!(content(&again) == wanted);
}

#[test]
fn ram_of_another_size_is_refused() {
    let dir = snapshot();
    let opened = Snapshot::open(dir.path()).unwrap();
    let larger = MemoryConfig::of_size(10 * MIB);
    for mode in [RestoreMode::Eager, RestoreMode::OnDemand] {
        let error = Ram::restore(&larger, &opened, mode, &Unobserved).unwrap_err();
        assert!(matches!(error, LoadError::Layout { .. }), "{error}");
    }
}

#[test]
fn only_the_owner_can_read_a_snapshot() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new");
    write(&dir, &small(), &ram(&small())).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&dir) & 0o777, 0o700);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o777, 0o600, "{}", path.display());
        names.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    let wanted = ["_vfio1", "vfio0"].map(|id| format!("vfio-{id}.bin"));
    let files = ["manifest.json", "memory.bin", "state.json"].map(str::to_owned);
    assert_eq!(names, wanted.into_iter().chain(files).collect());
}

#[test]
fn everything_is_durable_before_the_manifest_gets_its_name() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new");
    let steps = record(|| write(&dir, &small(), &ram(&small())).unwrap());
    let position = |step, name: &str| {
        let found = steps.iter().position(|(s, n)| *s == step && n == name);
        found.unwrap_or_else(|| panic!("no {step:?} of {name}"))
    };
    let rename = position(Step::Rename, "manifest.json");
    for (step, name) in &steps {
        if *step == Step::Create {
            let synced = position(Step::Sync, name);
            assert!(
                position(Step::Create, name) < synced && synced < rename,
                "{name}"
            );
        }
    }
    assert!(position(Step::Sync, "..") < rename);
    assert!(position(Step::Sync, ".") < rename);
    assert_eq!(steps[rename + 1..], [(Step::Sync, ".".to_owned())]);
}

#[test]
fn a_directory_with_something_in_it_is_refused_and_left_alone() {
    let dir = snapshot();
    let error = SnapshotWriter::begin(dir.path()).unwrap_err();
    assert!(matches!(error, WriteError::HoldsSnapshot { .. }), "{error}");
    Snapshot::open(dir.path())
        .unwrap()
        .verify_all(&Unobserved)
        .unwrap();

    for name in ["notes.txt", "vfio-..bin", "vfio-a b.bin"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.bin"), "old").unwrap();
        std::fs::write(dir.path().join(name), "mine").unwrap();
        let error = SnapshotWriter::begin(dir.path()).unwrap_err();
        assert!(matches!(error, WriteError::ForeignFile { .. }), "{error}");
        assert!(dir.path().join("memory.bin").exists() && dir.path().join(name).exists());
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("state.json")).unwrap();
    let error = SnapshotWriter::begin(dir.path()).unwrap_err();
    assert!(matches!(error, WriteError::ForeignFile { .. }), "{error}");
}

#[test]
fn two_writers_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = SnapshotWriter::begin(dir.path()).unwrap();
    let error = SnapshotWriter::begin(dir.path()).unwrap_err();
    assert!(matches!(error, WriteError::Busy { .. }), "{error}");
    drop(first);
    SnapshotWriter::begin(dir.path()).unwrap();
}

#[test]
fn a_failed_snapshot_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new");
    let mut writer = SnapshotWriter::begin(&dir).unwrap();
    writer.state("", &chip()).unwrap();
    let mut stream = writer.device_stream("vfio0").unwrap();
    stream.write_all(b"half").unwrap();
    writer
        .memory(&ram(&small()), &Quiesced::declare(), &Unobserved)
        .unwrap();
    let error = writer.finish(&config(small()), &timeline()).unwrap_err();
    assert!(
        matches!(&error, WriteError::Incomplete { missing } if missing == "vfio-vfio0.bin"),
        "{error}"
    );
    assert!(!dir.exists());

    let dir = tempfile::tempdir().unwrap();
    let mut writer = SnapshotWriter::begin(dir.path()).unwrap();
    writer.state("", &chip()).unwrap();
    let error = writer.finish(&config(small()), &timeline()).unwrap_err();
    assert!(matches!(error, WriteError::Incomplete { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_section_cannot_be_there_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SnapshotWriter::begin(dir.path()).unwrap();
    writer.state("", &chip()).unwrap();
    writer.state("", &chip()).unwrap();
    writer
        .memory(&ram(&small()), &Quiesced::declare(), &Unobserved)
        .unwrap();
    let error = writer.finish(&config(small()), &timeline()).unwrap_err();
    assert!(matches!(error, WriteError::Manifest(_)), "{error}");
    assert!(Snapshot::open(dir.path()).is_err());
}

/// Counts, and cancels after a number of bytes.
struct Limit {
    done: AtomicU64,
    limit: u64,
}

impl Observer for Limit {
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.limit
    }
}

#[test]
fn progress_adds_up_to_all_of_ram_and_cancelling_stops() {
    let follow = |limit| Limit {
        done: AtomicU64::new(0),
        limit,
    };
    let memory = MemoryConfig::of_size(64 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let original = ram(&memory);
    let mut writer = SnapshotWriter::begin(dir.path()).unwrap();
    let observer = follow(u64::MAX);
    let written = writer
        .memory(&original, &Quiesced::declare(), &observer)
        .unwrap();
    assert_eq!(observer.done.into_inner(), memory.size);
    assert_eq!(written, 6 * 4096);
    writer.finish(&config(memory.clone()), &timeline()).unwrap();

    let snapshot = Snapshot::open(dir.path()).unwrap();
    let observer = follow(u64::MAX);
    Ram::restore(&memory, &snapshot, RestoreMode::Eager, &observer).unwrap();
    assert_eq!(observer.done.into_inner(), memory.size);
    let cancelled = Ram::restore(&memory, &snapshot, RestoreMode::Eager, &follow(MIB));
    assert!(matches!(cancelled.unwrap_err(), LoadError::Cancelled));
    let cancelled = snapshot.verify_all(&follow(MIB)).unwrap_err();
    assert!(matches!(cancelled, ReadError::Cancelled));

    let dir = tempfile::tempdir().unwrap();
    let mut writer = SnapshotWriter::begin(dir.path()).unwrap();
    let cancelled = writer
        .memory(&original, &Quiesced::declare(), &follow(MIB))
        .unwrap_err();
    assert!(
        matches!(cancelled, WriteError::Memory { .. }),
        "{cancelled}"
    );
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
