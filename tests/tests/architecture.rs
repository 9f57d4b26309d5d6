//! The rules of the source tree that no compiler checks: which crate may know which, where `unsafe` may stand, who talks to KVM,
//! how long a file may be, and that ARCHITECTURE.md speaks of files that exist.
//!
//! An exception is a line here with its reason; one that is no longer needed fails as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use dormouse_tests::guest::checkout;

/// Each crate of the product, and the ones of this workspace that it is built on.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("arch", &[]),
    ("pci", &[]),
    ("vfio-migration", &[]),
    ("api", &[]),
    ("devices", &["pci", "vfio-migration"]),
    ("vmm", &["api", "arch", "devices", "pci", "vfio-migration"]),
    (".", &["api", "vmm"]),
    ("tests", &[]),
];

/// Crates in which the compiler refuses `unsafe`.
const WITHOUT_UNSAFE: [&str; 4] = ["api", "arch", "devices", "pci"];

/// Where `unsafe` may stand: a file, or a directory with all in it.
const UNSAFE_PLACES: [(&str, &str); 8] = [
    (
        "vfio-migration/src/sys/",
        "ioctls of the migration protocol",
    ),
    ("vmm/src/kvm/", "KVM's ioctls and signals to vCPUs"),
    ("vmm/src/memory/", "guest RAM"),
    ("vmm/src/vfio/ioctl.rs", "VFIO's ioctls"),
    ("vmm/src/vfio/mapping.rs", "BARs in the VMM's address space"),
    ("vmm/src/vfio/dma.rs", "the IOMMU's mappings of guest RAM"),
    (
        "vmm/src/machine/frame.rs",
        "makes RAM a memory slot: that it outlives the VM is the machine's promise",
    ),
    (
        "vmm/src/seccomp.rs",
        "its tests fork, to be killed by a filter",
    ),
];

/// Where kvm-ioctls may be named.
const KVM_PLACES: [&str; 2] = ["vmm/src/kvm/", "tests/src/not_run.rs"];

/// The most lines of a file before its tests.
const LONGEST: usize = 500;

/// Longer files, each with the reason.
const LONGER: [(&str, &str); 0] = [];

/// Directories of the product's sources.
const SOURCES: [&str; 9] = [
    "api",
    "arch",
    "devices",
    "pci",
    "src",
    "tests",
    "vfio-migration",
    "vmm",
    "xtask",
];

/// All Rust files, by their paths in the checkout.
fn rust_files() -> BTreeMap<String, String> {
    let root = checkout();
    let mut files = BTreeMap::new();
    let mut pending: Vec<_> = SOURCES.iter().map(|name| root.join(name)).collect();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                files.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(files.len() > 200, "only {} files found", files.len());
    files
}

fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs")
        || path.starts_with("tests/")
        || ["/tests/", "/testing/", "/benches/"]
            .iter()
            .any(|directory| path.contains(directory))
}

/// Code without comments, which may speak of anything. Strings stay.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Whether `word` stands in `line` by itself and not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_name) && !line[at + word.len()..].starts_with(is_name)
    })
}

/// The crates of this workspace that a crate depends on when it is not being tested.
fn dependencies(name: &str) -> BTreeSet<String> {
    let path = checkout().join(name).join("Cargo.toml");
    let manifest = fs::read_to_string(&path).unwrap();
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if matches!(section, "[dependencies]" | "[build-dependencies]")
            && let Some(rest) = line.strip_prefix("dormouse-")
        {
            let end = rest.find(['.', ' ', '=']).unwrap_or(rest.len());
            found.insert(rest[..end].to_owned());
        }
    }
    found
}

#[test]
fn crates_depend_in_one_direction() {
    for (name, allowed) in MAY_USE {
        let allowed: BTreeSet<_> = allowed.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(dependencies(name), allowed, "dependencies of {name}");
    }
}

#[test]
fn crates_without_unsafe_say_so() {
    for name in WITHOUT_UNSAFE {
        let path = checkout().join(name).join("src/lib.rs");
        let text = fs::read_to_string(&path).unwrap();
        let forbids = |line: &str| line == "#![forbid(unsafe_code)]";
        assert!(text.lines().any(forbids), "{}", path.display());
    }
}

#[test]
fn unsafe_stands_where_it_may() {
    let mut unused: BTreeSet<_> = UNSAFE_PLACES.iter().map(|(place, _)| *place).collect();
    for (path, text) in rust_files() {
        let is_unsafe = |line: &str| has_word(code(line), "unsafe");
        if path.ends_with("architecture.rs") || !text.lines().any(is_unsafe) {
            continue;
        }
        let place = UNSAFE_PLACES
            .iter()
            .find(|(place, _)| path.starts_with(place));
        let Some((place, _)) = place else {
            panic!("{path} is no place for `unsafe`")
        };
        unused.remove(place);
    }
    assert!(unused.is_empty(), "without `unsafe` by now: {unused:?}");
}

#[test]
fn one_module_knows_kvms_descriptors() {
    for (path, text) in rust_files() {
        let names_kvm = text.lines().any(|line| has_word(code(line), "kvm_ioctls"));
        let allowed = KVM_PLACES.iter().any(|place| path.starts_with(place));
        assert!(
            !names_kvm || allowed || path.ends_with("architecture.rs"),
            "{path} names kvm_ioctls"
        );
    }
}

#[test]
fn files_are_short() {
    let mut exceptions: BTreeSet<_> = LONGER.iter().map(|(path, _)| *path).collect();
    for (path, text) in rust_files() {
        if is_test(&path) {
            continue;
        }
        let lines: Vec<_> = text.lines().collect();
        let tests = lines.windows(2).position(|pair| {
            pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        });
        let length = tests.unwrap_or(lines.len());
        let is_exception = exceptions.remove(path.as_str());
        assert_eq!(
            length > LONGEST,
            is_exception,
            "{path} has {length} lines before its tests"
        );
    }
    assert!(exceptions.is_empty(), "not there: {exceptions:?}");
}

#[test]
fn architecture_names_what_exists() {
    let root = checkout();
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let in_backticks = text.split('`').skip(1).step_by(2);
    let in_links = text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?;
        (!target.contains("://") && !target.starts_with('#')).then_some(target)
    });
    let is_path = |name: &&str| {
        name.contains('/')
            || [".rs", ".md", ".toml", ".sh"]
                .iter()
                .any(|end| name.ends_with(end))
    };
    let is_plain = |name: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        !name.starts_with('/') && name.chars().all(plain)
    };
    let named: BTreeSet<_> = in_backticks
        .filter(is_path)
        .filter(is_plain)
        .chain(in_links)
        .collect();
    assert!(named.len() > 10, "only {named:?}");
    for name in named {
        let path = name.split('#').next().unwrap_or_default();
        assert!(root.join(Path::new(path)).exists(), "no {name}");
    }
}

#[test]
fn invariants_name_tests_that_exist() {
    let root = checkout();
    let text = fs::read_to_string(root.join("docs/invariants.md")).unwrap();
    let files = rust_files();
    let named: Vec<_> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|name| name.rsplit_once(".rs::"))
        .collect();
    assert!(named.len() > 30, "only {named:?}");
    for (file, test) in named {
        let path = format!("{file}.rs");
        let text = files.get(&path).unwrap_or_else(|| panic!("no {path}"));
        let defined = text.contains(&format!("fn {test}("));
        assert!(defined, "no {test} in {path}");
    }
}
