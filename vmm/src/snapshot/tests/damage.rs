//! Every flipped byte and every wrong length is found, and named with its file and place.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{ChipState, MIB, marks, small, snapshot};
use crate::memory::{LoadError, Ram, RestoreMode, Unobserved};
use crate::snapshot::{ReadError, Snapshot};

fn verify(dir: &Path) -> Result<(), ReadError> {
    Snapshot::open(dir)?.verify_all(&Unobserved)
}

/// Changes one byte, calls `then`, and changes it back.
fn with_flipped<T>(path: &Path, at: u64, bit: u8, then: impl FnOnce() -> T) -> T {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
    let answer = then();
    file.write_all_at(&byte, at).unwrap();
    answer
}

/// The file and the bytes that an error names.
fn place(error: &ReadError) -> (PathBuf, Option<std::ops::Range<u64>>) {
    match error {
        ReadError::Damaged { path, range } => (path.clone(), Some(range.clone())),
        ReadError::Manifest { path, .. } | ReadError::Length { path, .. } => (path.clone(), None),
        other => panic!("{other}"),
    }
}

#[test]
fn every_flipped_byte_of_the_small_files_is_found() {
    let dir = snapshot();
    for name in ["manifest.json", "state.json"] {
        let path = dir.path().join(name);
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length > 0);
        for at in 0..length {
            // A bit of every position, bit 5 (upper and lower case) for all.
            for bit in [5, (at % 8) as u8] {
                let opened = || match Snapshot::open(dir.path()) {
                    Ok(opened) => opened.verify_state_and_streams(&Unobserved),
                    Err(error) => Err(error),
                };
                let error = with_flipped(&path, at, bit, opened).unwrap_err();
                let (file, range) = place(&error);
                assert_eq!(file, path, "{error}");
                assert!(
                    range.is_none_or(|range| range.contains(&at)),
                    "{at}: {error}"
                );
            }
        }
    }
    verify(dir.path()).unwrap();
}

#[test]
fn flipped_bytes_of_streams_and_memory_are_found() {
    let dir = snapshot();
    let stream = dir.path().join("vfio-vfio0.bin");
    let memory = dir.path().join("memory.bin");
    let in_stream = (0..70_000).step_by(6_999).map(|at| (&stream, at));
    // Bytes with content, their neighbours, holes, and the last byte.
    let marks = marks(9 * MIB).into_iter();
    let marks = marks.flat_map(|at| [at, (at + 1) % (9 * MIB), at ^ 0x1000]);
    let in_memory = marks.chain([3 * MIB, 5 * MIB]).map(|at| (&memory, at));
    for (path, at) in in_stream.chain(in_memory) {
        let error = with_flipped(path, at, (at % 8) as u8, || verify(dir.path())).unwrap_err();
        let (file, range) = place(&error);
        assert_eq!(&file, path, "{error}");
        let range = range.unwrap();
        assert!(
            range.contains(&at) && range.end - range.start <= 2 * MIB,
            "{at}: {error}"
        );
    }
    verify(dir.path()).unwrap();
}

#[test]
fn the_first_of_several_damages_is_named() {
    let dir = snapshot();
    let memory = dir.path().join("memory.bin");
    for _ in 0..20 {
        let twice = || with_flipped(&memory, 8 * MIB, 0, || verify(dir.path()));
        let error = with_flipped(&memory, 3 * MIB, 0, twice).unwrap_err();
        assert_eq!(place(&error).1, Some(2 * MIB..4 * MIB));
    }
}

#[test]
fn an_eager_restore_refuses_damaged_memory() {
    let dir = snapshot();
    let memory = dir.path().join("memory.bin");
    for at in [4096, 5 * MIB] {
        let restore = || {
            let opened = Snapshot::open(dir.path()).unwrap();
            Ram::restore(&small(), &opened, RestoreMode::Eager, &Unobserved).map(|_| ())
        };
        let error = with_flipped(&memory, at, 3, restore).unwrap_err();
        let LoadError::Damaged { path, range } = error else {
            panic!("{error}");
        };
        assert!(path == memory && range.contains(&at));
    }
}

#[test]
fn state_and_streams_are_checked_again_when_they_are_taken() {
    let dir = snapshot();
    let opened = Snapshot::open(dir.path()).unwrap();
    opened.verify_all(&Unobserved).unwrap();
    let state = dir.path().join("state.json");
    let error = with_flipped(&state, 3, 0, || opened.state::<ChipState>("")).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");

    let stream = dir.path().join("vfio-vfio0.bin");
    let mut bytes = vec![0; 70_000];
    let read = || {
        let mut stream = opened.device_stream("vfio0").unwrap();
        std::io::Read::read_exact(&mut stream, &mut bytes)
    };
    let error = with_flipped(&stream, 10, 0, read).unwrap_err();
    assert!(
        error.to_string().contains("vfio-vfio0.bin is damaged"),
        "{error}"
    );
    assert!(opened.finish().is_err());
}

#[test]
fn every_wrong_length_is_found() {
    let names = [
        "manifest.json",
        "state.json",
        "vfio-vfio0.bin",
        "vfio-_vfio1.bin",
        "memory.bin",
    ];
    for name in names {
        let dir = snapshot();
        let path = dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        let length = good.len();
        let shorter = [0, 1, length / 2, length.saturating_sub(1)]
            .into_iter()
            .filter(|&l| l < length);
        for wrong in shorter.chain([length + 1, length + 4096]) {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(wrong as u64).unwrap();
            let error = Snapshot::open(dir.path()).unwrap_err();
            assert_eq!(place(&error).0, path, "{wrong}: {error}");
            file.set_len(length as u64).unwrap();
            file.write_all_at(&good, 0).unwrap();
        }
        verify(dir.path()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = Snapshot::open(dir.path()).unwrap_err();
        let missing =
            matches!(&error, ReadError::MissingFile { path: missing } if *missing == path);
        assert!(
            missing || matches!(error, ReadError::NoSnapshot { .. }),
            "{error}"
        );
    }
}

#[test]
fn links_pipes_and_directories_are_no_files_of_a_snapshot() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    for name in [
        "manifest.json",
        "state.json",
        "vfio-vfio0.bin",
        "memory.bin",
    ] {
        let dir = snapshot();
        let path = dir.path().join(name);
        let moved = dir.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        let refused = || {
            let error = Snapshot::open(dir.path()).unwrap_err();
            assert!(
                matches!(&error, ReadError::NotRegular { path: p } if *p == path),
                "{error}"
            );
            std::fs::remove_file(&path)
                .or_else(|_| std::fs::remove_dir(&path))
                .unwrap();
        };
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        refused();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        refused();
        std::fs::create_dir(&path).unwrap();
        refused();
    }
}

#[test]
fn memory_without_holes_is_as_good() {
    let dir = snapshot();
    let path = dir.path().join("memory.bin");
    // What a copy by a tool that knows no holes makes of it.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let opened = Snapshot::open(dir.path()).unwrap();
    opened.verify_all(&Unobserved).unwrap();
    Ram::restore(&small(), &opened, RestoreMode::Eager, &Unobserved).unwrap();
}
