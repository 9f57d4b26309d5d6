//! A damaged snapshot is refused with the file and the place, and nothing is touched for it.
//!
//! Bytes are sampled: all are tried, without processes, by the tests of the snapshot module itself. What an on-demand
//! restore does not read is the content of memory; everything else is refused by every restore.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dormouse_tests::exit::Exit;
use dormouse_tests::{Serial, Snapshot, TestVm, VmConfig, kvm_guest};

/// A snapshot of a small VM, and how long its files are.
struct Victim {
    snapshot: Snapshot,
}

impl Victim {
    fn new() -> Option<Self> {
        let guest = kvm_guest()?;
        let config = VmConfig::new(&guest.pvh, "fill=2 ask").memory(16 << 20);
        let vm = TestVm::start(&config.cpus(2).serial(Serial::Tty).with_api());
        vm.expect("ask>");
        let snapshot = Snapshot::take(&vm);
        assert!(snapshot.verify().status.success());
        Some(Self { snapshot })
    }

    fn length(&self, name: &str) -> u64 {
        fs::metadata(self.snapshot.file(name)).unwrap().len()
    }

    /// Flips bits of one byte while `check` looks.
    fn with_flipped(&self, name: &str, offset: u64, check: impl FnOnce()) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.snapshot.file(name))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        let mask = 1 << (offset % 8);
        file.write_all_at(&[byte[0] ^ mask], offset).unwrap();
        check();
        file.write_all_at(&byte, offset).unwrap();
    }

    /// The file's length is another while `check` looks.
    fn with_length(&self, name: &str, length: u64, check: impl FnOnce()) {
        let path = self.snapshot.file(name);
        let whole = fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        check();
        file.set_len(0).unwrap();
        file.write_all_at(&whole, 0).unwrap();
    }

    fn refuses(&self, exit: &Exit, name: &str) {
        let path = self.snapshot.file(name);
        exit.assert_failure(&[path.to_str().unwrap()]);
    }

    fn restores(&self, arguments: &[&str]) -> Exit {
        self.snapshot.refused_restore(arguments)
    }

    /// Intact again.
    fn check_intact(&self) {
        assert!(self.snapshot.verify().status.success());
        self.snapshot.wake(&["--verify"]).expect_alive();
    }
}

/// A guest that waits for words answers.
trait ExpectAlive {
    fn expect_alive(self);
}

impl ExpectAlive for TestVm {
    fn expect_alive(mut self) {
        self.type_in(b"verify=2\n");
        self.expect("verify=ok");
    }
}

/// `count` places in a file, its first and last byte among them, spread without a pattern that a format might have.
fn sample(length: u64, count: u64) -> impl Iterator<Item = u64> {
    let step = (length / count).max(1);
    (0..count)
        .map(move |n| n * step + (n * 7919) % step)
        .filter(move |&place| place < length)
        .chain([0, length - 1])
}

/// Whether the error names a range of bytes with `offset` in it, or the very byte; or where a checksum starts that is none.
fn names_place(stderr: &str, offset: u64) -> bool {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    let range = |text: &str| {
        let found = numbers(text);
        Some(Range {
            start: *found.first()?,
            end: *found.get(1)?,
        })
    };
    if let Some((_, rest)) = stderr.split_once("bytes ") {
        return range(rest).is_some_and(|range| range.contains(&offset));
    }
    let byte = stderr.split_once("byte ").map(|(_, rest)| numbers(rest));
    let byte = byte.and_then(|found| found.first().copied());
    byte.is_some_and(|byte| (byte..byte + 16).contains(&offset))
}

#[test]
fn flipped_bytes_of_the_manifest() {
    let Some(victim) = Victim::new() else { return };
    let name = "manifest.json";
    for offset in sample(victim.length(name), 60).chain(0..60) {
        victim.with_flipped(name, offset, || {
            let exit = victim.snapshot.verify();
            victim.refuses(&exit, name);
            // Another format version, or digits that are no longer a checksum, are named as such.
            let says = ["version", "checksum"].map(|word| exit.stderr.contains(word));
            assert!(
                names_place(&exit.stderr, offset) || says.contains(&true),
                "{offset}: {exit:?}"
            );
            if offset % 4 == 0 {
                victim.refuses(&victim.restores(&[]), name);
            }
        });
    }
    victim.check_intact();
}

#[test]
fn flipped_bytes_of_the_state() {
    let Some(victim) = Victim::new() else { return };
    let name = "state.json";
    for (number, offset) in sample(victim.length(name), 80).enumerate() {
        victim.with_flipped(name, offset, || {
            let exit = victim.snapshot.verify();
            victim.refuses(&exit, name);
            assert!(names_place(&exit.stderr, offset), "{offset}: {exit:?}");
            if number % 4 == 0 {
                victim.refuses(&victim.restores(&[]), name);
            }
        });
    }
    victim.check_intact();
}

#[test]
fn flipped_bytes_of_memory() {
    let Some(victim) = Victim::new() else { return };
    let name = "memory.bin";
    for (number, offset) in sample(victim.length(name), 40).enumerate() {
        victim.with_flipped(name, offset, || {
            let exit = victim.snapshot.verify();
            victim.refuses(&exit, name);
            assert!(names_place(&exit.stderr, offset), "{offset}: {exit:?}");
            if number % 4 == 0 {
                for mode in ["--eager", "--verify"] {
                    let exit = victim.restores(&[mode]);
                    victim.refuses(&exit, name);
                    assert!(names_place(&exit.stderr, offset), "{offset}: {exit:?}");
                }
            }
        });
    }
    victim.check_intact();
}

#[test]
fn other_lengths() {
    let Some(victim) = Victim::new() else { return };
    for name in ["manifest.json", "state.json", "memory.bin"] {
        let length = victim.length(name);
        for wrong in [0, 1, length / 2, length - 1, length + 1, length + (2 << 20)] {
            victim.with_length(name, wrong, || {
                for exit in [
                    victim.snapshot.verify(),
                    victim.restores(&[]),
                    victim.restores(&["--eager"]),
                ] {
                    victim.refuses(&exit, name);
                }
            });
        }
        // Longer than anybody would read.
        victim.with_length(name, 1 << 40, || {
            victim.refuses(&victim.snapshot.verify(), name);
        });
    }
    victim.check_intact();
}

#[test]
fn files_that_are_missing_or_something_else() {
    let Some(victim) = Victim::new() else { return };
    let aside = victim.snapshot.path().with_extension("aside");
    let check = |name: &str, noun: &str| {
        let exits = [victim.snapshot.verify(), victim.restores(&[])];
        for exit in exits {
            exit.assert_failure(&[victim.snapshot.path().to_str().unwrap(), noun]);
            assert!(exit.stderr.contains(name), "{exit:?}");
        }
    };
    for name in ["manifest.json", "state.json", "memory.bin"] {
        let path = victim.snapshot.file(name);
        fs::rename(&path, &aside).unwrap();
        check(name, "");
        fs::create_dir(&path).unwrap();
        check(name, "regular file");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        check(name, "regular file");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(Path::new("/dev/zero"), &path).unwrap();
        check(name, "regular file");
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo can be run").success());
        check(name, "regular file");
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    victim.check_intact();
}

#[test]
fn refused_restore_touches_nothing() {
    let Some(guest) = kvm_guest() else { return };
    let log = tempfile::tempdir().unwrap();
    let file = log.path().join("serial.log");
    let serial = serde_json::json!({ "mode": "File", "file": file });
    let config = VmConfig::new(&guest.pvh, "ask").set("/serial", serial);
    let vm = TestVm::start(&config.with_api());
    vm.api().wait_for_state("Running");
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let victim = Victim { snapshot };
    for name in ["manifest.json", "state.json"] {
        fs::remove_file(&file).unwrap_or_default();
        let before = victim.snapshot.fingerprint();
        let middle = victim.length(name) / 2;
        victim.with_flipped(name, middle, || {
            victim.refuses(&victim.restores(&["--eager"]), name);
        });
        assert!(!file.exists(), "{name}: the console was opened");
        let after = victim.snapshot.fingerprint();
        assert!(before.keys().eq(after.keys()));
    }
}
