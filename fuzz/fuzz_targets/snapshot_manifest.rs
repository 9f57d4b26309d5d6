//! A snapshot directory with a foreign manifest: read raw, then in a correct frame and with files of the right lengths,
//! so that the checks behind the checksum are reached.
#![no_main]

use std::fs::{self, File};
use std::path::Path;

use dormouse_fuzz::message;
use dormouse_vmm::snapshot::checksum::Checksum;
use dormouse_vmm::snapshot::format::{self, FORMAT_VERSION, MANIFEST_FILE, Manifest};
use dormouse_vmm::snapshot::{ReadError, Snapshot};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Longest file that is made, holes included: what the host's file system takes.
const FILE_LIMIT_BYTES: u64 = 1 << 40;
/// Chunks that are looked at.
const CHUNKS: u64 = 1000;

thread_local! {
    static DIRECTORY: TempDir = tempfile::tempdir().expect("the host has room for small files");
}

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = format::parse(bytes) {
        message::check(&error.to_string());
    }
    let framed = framed(bytes);
    match format::parse(&framed) {
        Ok(manifest) => DIRECTORY.with(|dir| open(dir.path(), &manifest, &framed)),
        Err(error) => message::check(&error.to_string()),
    }
});

/// The body in the frame that the format demands.
fn framed(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{{\n\"dormouse_snapshot\": {FORMAT_VERSION},\n\"checksum\": \"{}\",\n\"manifest\": ",
        Checksum::of(body)
    );
    [head.as_bytes(), body, b"\n}\n"].concat()
}

fn open(dir: &Path, manifest: &Manifest, bytes: &[u8]) {
    let made = make_files(dir, manifest);
    fs::write(dir.join(MANIFEST_FILE), bytes).expect("the host has room for small files");
    match Snapshot::open(dir) {
        Ok(snapshot) => check(&snapshot),
        Err(error @ ReadError::Manifest { .. }) => message::check(&error.to_string()),
        // A manifest that keeps the rules names no file but those that are there.
        Err(error) => assert!(!made, "{error}"),
    }
}

/// Makes the files that a manifest may name, as long as it says. Says whether it could.
fn make_files(dir: &Path, manifest: &Manifest) -> bool {
    for entry in fs::read_dir(dir).expect("it can be listed").flatten() {
        fs::remove_file(entry.path()).expect("it is a file of an earlier run");
    }
    let state = manifest
        .sections
        .iter()
        .map(|s| (s.file.as_str(), s.length));
    let memory = (manifest.memory.file.as_str(), manifest.memory.length);
    let mut lengths = std::collections::BTreeMap::<&str, u64>::new();
    for (name, length) in state.chain([memory]) {
        let total = lengths.entry(name).or_default();
        *total = total.saturating_add(length);
    }
    lengths.into_iter().all(|(name, length)| {
        let plain = !name.contains(['/', '\0']) && name != MANIFEST_FILE && name.len() < 200;
        plain
            && length <= FILE_LIMIT_BYTES
            && File::create(dir.join(name)).is_ok_and(|file| file.set_len(length).is_ok())
    })
}

fn check(snapshot: &Snapshot) {
    let manifest = snapshot.manifest();
    let again = format::render(manifest).expect("a manifest that was read can be written");
    let again = format::parse(&again).expect("what is written can be read");
    assert_eq!(again.sections, manifest.sections);
    assert_eq!(again.memory, manifest.memory);

    let (_, memory) = snapshot.memory();
    assert!(memory.used_bytes() <= memory.length);
    let mut end = 0;
    for chunk in 0..memory.chunks().min(CHUNKS) {
        let range = memory.chunk_range(chunk);
        assert!(end <= range.start && range.start < range.end && range.end <= memory.length);
        end = range.end;
        let _ = memory.checksum(chunk);
    }
    for id in snapshot.stream_ids() {
        snapshot.device_stream(id).expect("its file is there");
    }
}
