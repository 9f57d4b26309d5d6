//! A snapshot directory under test: taken of a running VM, copied, fingerprinted, damaged, or forged so that every
//! checksum in it is right.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use twox_hash::XxHash3_64;

use crate::binary::dormouse;
use crate::exit::{Exit, ended};
use crate::vm::{SOON, TestVm};

const BEFORE_BODY: &str = "\"manifest\": ";
const AFTER_BODY: &str = "\n}\n";

/// A snapshot directory, gone with the value.
#[derive(Debug)]
pub struct Snapshot {
    root: TempDir,
}

/// What [`Snapshot::forge`] may change.
#[derive(Debug)]
pub struct Parts {
    /// The manifest proper; lengths and checksums of state are made anew.
    pub manifest: Value,
    /// The states in the order of the manifest's sections.
    pub states: Vec<Value>,
}

impl Parts {
    /// The first state of `kind`.
    ///
    /// # Panics
    /// When there is none.
    pub fn state(&mut self, kind: &str) -> &mut Value {
        let sections = self.manifest["sections"].as_array().expect("sections");
        let index = sections
            .iter()
            .position(|section| section["kind"] == kind)
            .unwrap_or_else(|| panic!("no section {kind}"));
        &mut self.states[index]
    }
}

impl Snapshot {
    /// A directory of which nothing exists yet.
    ///
    /// # Panics
    /// When no temporary directory can be made.
    pub fn nowhere() -> Self {
        Self {
            root: tempfile::tempdir().expect("a temporary directory can be made"),
        }
    }

    /// Pauses a VM and snapshots it.
    ///
    /// # Panics
    /// When either fails.
    #[track_caller]
    pub fn take(vm: &TestVm) -> Self {
        vm.api().put("vm.pause").expect(204);
        Self::take_paused(vm)
    }

    /// Snapshots a paused VM.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn take_paused(vm: &TestVm) -> Self {
        let snapshot = Self::nowhere();
        vm.api().snapshot(&snapshot.path()).expect(204);
        snapshot
    }

    /// The directory.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("snapshot")
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A copy, holes kept.
    ///
    /// # Panics
    /// When `cp` fails.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::nowhere();
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .args([self.path(), copy.path()])
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "cp -a works");
        copy
    }

    /// Length, time of the last change and a digest of each file.
    ///
    /// # Panics
    /// When one cannot be read.
    pub fn fingerprint(&self) -> BTreeMap<String, (u64, i64, u64)> {
        let entries = fs::read_dir(self.path()).expect("the directory is there");
        entries
            .map(|entry| {
                let entry = entry.expect("the directory can be read");
                let metadata = entry.metadata().expect("the file is there");
                let digest = XxHash3_64::oneshot(&fs::read(entry.path()).expect("it is a file"));
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, (metadata.len(), metadata.mtime_nsec(), digest))
            })
            .collect()
    }

    /// Whether the snapshot was completed.
    pub fn is_complete(&self) -> bool {
        self.file("manifest.json").exists()
    }

    /// The end of `dormouse snapshot verify`.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn verify(&self) -> Exit {
        let mut command = Command::new(dormouse());
        ended(
            command.args(["snapshot", "verify"]).arg(self.path()),
            2 * SOON,
        )
    }

    /// The end of a `dormouse restore` that is refused.
    ///
    /// # Panics
    /// When it takes too long, as it does when the VM runs.
    pub fn refused_restore(&self, arguments: &[&str]) -> Exit {
        let mut command = Command::new(dormouse());
        command
            .args(["restore", "--resume", "--snapshot"])
            .arg(self.path());
        ended(command.args(arguments), SOON)
    }

    /// Wakes its VM and lets it run.
    pub fn wake(&self, arguments: &[&str]) -> TestVm {
        TestVm::restore(&self.path(), &[arguments, &["--resume"]].concat())
    }

    /// Changes what the snapshot says, with checksums that fit.
    ///
    /// # Panics
    /// When it is no snapshot of this format.
    pub fn forge(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts();
        change(&mut parts);
        let mut state_file = Vec::new();
        let sections = parts.manifest["sections"].as_array_mut().expect("sections");
        for (section, state) in sections.iter_mut().zip(&parts.states) {
            let text = format!("{state}\n");
            section["length"] = json!(text.len());
            section["checksum"] = json!(checksum(text.as_bytes()));
            state_file.extend_from_slice(text.as_bytes());
        }
        let body = parts.manifest.to_string();
        let manifest = format!(
            "{{\n\"dormouse_snapshot\": 1,\n\"checksum\": \"{}\",\n{BEFORE_BODY}{body}{AFTER_BODY}",
            checksum(body.as_bytes())
        );
        fs::write(self.file("state.json"), state_file).expect("the state can be written");
        fs::write(self.file("manifest.json"), manifest).expect("the manifest can be written");
    }

    fn parts(&self) -> Parts {
        let manifest = fs::read_to_string(self.file("manifest.json")).expect("a manifest");
        let start = manifest.find(BEFORE_BODY).expect("a frame") + BEFORE_BODY.len();
        let body = &manifest[start..manifest.len() - AFTER_BODY.len()];
        let manifest: Value = serde_json::from_str(body).expect("a manifest is JSON");
        let state = fs::read(self.file("state.json")).expect("state");
        let states = state
            .split_inclusive(|&byte| byte == b'\n')
            .map(|line| serde_json::from_slice(line).expect("state is JSON"))
            .collect();
        Parts { manifest, states }
    }
}

/// Bytes that a file takes on the disk.
///
/// # Panics
/// When there is no such file.
pub fn disk_bytes(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").blocks() * 512
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(bytes))
}
