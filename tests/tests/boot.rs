//! The guest starts by every boot protocol and finds what the protocol promises.

use std::fs;

use dormouse_tests::{GuestImages, TestVm, VmConfig, kvm_guest};
use serde_json::json;

const HELLO: &str = "DORMOUSE-GUEST hello";

fn boots(image: impl FnOnce(&GuestImages) -> &std::path::Path, protocol: &str) {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(image(&guest), "memmap"));
    assert_eq!(
        vm.expect("boot="),
        format!("boot={protocol} mem={}", ram_of(&vm))
    );
    vm.wait_powered_off();
    assert!(vm.console().text().starts_with(HELLO));
}

/// Sum of the RAM ranges that the guest listed.
fn ram_of(vm: &TestVm) -> u64 {
    vm.console()
        .text()
        .lines()
        .filter(|line| line.starts_with("range") && line.ends_with("type=1"))
        .map(|line| {
            let size = line
                .split("size=0x")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            u64::from_str_radix(size.expect("the range has a size"), 16).expect("it is a number")
        })
        .sum()
}

#[test]
fn elf_with_pvh_note_starts_at_its_pvh_entry() {
    boots(|guest| &guest.pvh, "pvh");
}

#[test]
fn elf_without_note_starts_by_the_64_bit_protocol() {
    boots(|guest| &guest.linux64, "linux64");
}

#[test]
fn bzimage_starts_by_the_64_bit_protocol() {
    boots(|guest| &guest.bzimage, "linux64");
}

#[test]
fn guest_without_a_command_line_runs() {
    let Some(guest) = kvm_guest() else { return };
    for image in [&guest.pvh, &guest.bzimage] {
        let config = VmConfig::new(image, "").set("/payload", json!({ "kernel": image }));
        let mut vm = TestVm::start(&config);
        vm.wait_powered_off();
        assert_eq!(vm.console().text(), format!("{HELLO}\n"));
    }
}

#[test]
fn initramfs_arrives_whole() {
    let Some(guest) = kvm_guest() else { return };
    let initramfs: Vec<u8> = (0..10_007_u32).map(|i| (i % 251) as u8).collect();
    let sum: u64 = initramfs.iter().map(|byte| u64::from(*byte)).sum();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initramfs");
    fs::write(&path, initramfs).unwrap();
    for image in [&guest.pvh, &guest.linux64, &guest.bzimage] {
        let config = VmConfig::new(image, "initrd").set("/payload/initramfs", json!(path));
        let mut vm = TestVm::start(&config);
        assert_eq!(vm.expect("initrd "), format!("initrd size=10007 sum={sum}"));
        vm.wait_powered_off();
    }
}

#[test]
fn acpi_tables_are_sound_and_name_the_registers() {
    let Some(guest) = kvm_guest() else { return };
    for image in [&guest.pvh, &guest.bzimage] {
        let mut vm = TestVm::start(&VmConfig::new(image, "acpi").cpus(3));
        let found = vm.expect("acpi=");
        assert!(
            found.starts_with("acpi=ok cpus=3 disabled=0 ioapics=1"),
            "{found}"
        );
        let details = vm.expect("acpi dsdt=");
        assert!(
            details.contains("hw-reduced=1 sleep=0x600 reset=0x600"),
            "{details}"
        );
        assert!(!details.ends_with("ecam=0x0"), "{details}");
        vm.wait_powered_off();
    }
}

#[test]
fn host_bridge_is_the_same_by_port_and_by_ecam() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "pci"));
    let bridge = vm.expect("pci 00:0.0");
    assert!(bridge.ends_with("class=60000"), "{bridge}");
    let found = vm.expect("pci=");
    assert!(found.starts_with("pci=ok functions=1 "), "{found}");
    vm.wait_powered_off();
}

#[test]
fn clock_and_calendar_tell_the_hosts_time() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "clock rtc"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("the epoch is over").as_secs();
    let clock = vm.expect("clock=");
    if let Some(wall) = clock.split("wall=").nth(1) {
        let wall: u64 = wall
            .split(' ')
            .next()
            .unwrap_or("")
            .parse()
            .expect("a number");
        // The wall clock is that of the guest's start.
        assert!(wall.abs_diff(now) < 60, "{clock}, but the host has {now}");
    }
    let rtc = vm.expect("rtc year=");
    let year: u64 = rtc["rtc year=".len()..][..2].parse().expect("a BCD year");
    assert_eq!(year, (1970 + now / 31_556_952) % 100, "{rtc}");
    vm.wait_powered_off();
}
