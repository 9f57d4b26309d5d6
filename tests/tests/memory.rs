//! RAM of every size and backing is there, all of it, and holds what the guest writes.

use std::fs;

use dormouse_tests::not_run::not_run;
use dormouse_tests::{HugePages, TestVm, VmConfig, kvm_guest};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Runs the memory test and returns the guest's result line.
fn memory_test(config: &VmConfig, size: u64) -> String {
    let mut vm = TestVm::start(config);
    let line = vm.expect("memory=");
    vm.wait_powered_off();
    assert!(
        line.starts_with("memory=ok") && line.ends_with("bad=0"),
        "{line}"
    );
    let mem: u64 = number(&line, "mem=");
    // The legacy hole below 1 MiB is no RAM, and tables may be taken out.
    assert!(mem <= size && size - mem <= MIB, "{line} of {size}");
    line
}

fn number(line: &str, name: &str) -> u64 {
    let value = line
        .split(name)
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {line}"))
}

#[test]
fn smallest_machine_has_4_mib() {
    let Some(guest) = kvm_guest() else { return };
    for image in [&guest.pvh, &guest.linux64, &guest.bzimage] {
        memory_test(&VmConfig::new(image, "memory=1").memory(4 * MIB), 4 * MIB);
    }
}

#[test]
fn sizes_need_only_be_whole_pages() {
    let Some(guest) = kvm_guest() else { return };
    for size in [4 * MIB + 4096, 5 * MIB, 33 * MIB - 4096, 127 * MIB] {
        memory_test(&VmConfig::new(&guest.pvh, "memory=1").memory(size), size);
    }
}

#[test]
fn half_a_gib_works_by_each_protocol() {
    let Some(guest) = kvm_guest() else { return };
    for image in [&guest.pvh, &guest.bzimage] {
        memory_test(
            &VmConfig::new(image, "memory=16").memory(512 * MIB),
            512 * MIB,
        );
    }
}

#[test]
fn six_gib_go_around_the_32_bit_hole() {
    let Some(guest) = kvm_guest() else { return };
    for image in [&guest.pvh, &guest.bzimage] {
        let config = VmConfig::new(image, "memory=128").memory(6144 * MIB);
        let line = memory_test(&config, 6144 * MIB);
        assert!(number(&line, "above4g=") > 0, "{line}");
    }
}

#[test]
fn sizes_just_around_the_32_bit_hole_work() {
    let Some(guest) = kvm_guest() else { return };
    for size in [3071, 3072, 3073, 4096] {
        let config = VmConfig::new(&guest.pvh, "memory=128").memory(size * MIB);
        memory_test(&config, size * MIB);
    }
}

#[test]
fn shared_and_prefaulted_memory_work() {
    let Some(guest) = kvm_guest() else { return };
    for (field, value) in [("shared", true), ("prefault", true), ("thp", false)] {
        let config = VmConfig::new(&guest.pvh, "memory=8")
            .memory(64 * MIB)
            .set(&format!("/memory/{field}"), json!(value));
        memory_test(&config, 64 * MIB);
    }
}

#[test]
fn initramfs_and_memory_test_leave_each_other_alone() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initramfs");
    fs::write(&path, vec![1; 3 << 20]).unwrap();
    let config = VmConfig::new(&guest.pvh, "memory=1 initrd=512")
        .memory(16 * MIB)
        .set("/payload/initramfs", json!(path));
    let mut vm = TestVm::start(&config);
    vm.expect("memory=ok");
    assert_eq!(vm.expect("initrd "), "initrd size=3145728 sum=6144");
    vm.wait_powered_off();
}

#[test]
fn huge_pages_of_2_mib_back_the_guest() {
    let Some(guest) = kvm_guest() else { return };
    let _pages = match HugePages::reserve(64) {
        Ok(pages) => pages,
        Err(reason) => return not_run(&reason),
    };
    let config = VmConfig::new(&guest.pvh, "memory=2 ask")
        .memory(128 * MIB)
        .set("/memory/hugepages", json!(true))
        .set("/memory/hugepage_size", json!(2 * MIB));
    let vm = TestVm::start(&config);
    vm.expect("memory=ok");
    vm.expect("ask>");
    let used = fs::read_to_string(format!("/proc/{}/smaps_rollup", vm.pid())).unwrap();
    let huge: u64 = used
        .lines()
        .filter(|line| line.starts_with("Private_Hugetlb") || line.starts_with("Shared_Hugetlb"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    assert_eq!(huge, 128 * 1024, "all RAM is huge pages:\n{used}");
}
