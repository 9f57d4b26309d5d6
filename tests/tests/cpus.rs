//! Several CPUs start by INIT and SIPI, each with the APIC ID that its CPUID names.

use dormouse_tests::{TestVm, VmConfig, kvm_guest};

fn all_start(count: u32) {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "smp").cpus(count));
    let line = vm.expect("smp cpus=");
    assert_eq!(
        line,
        format!("smp cpus={count} of={count} wrong-ids=0 duplicates=0")
    );
    vm.wait_powered_off();
}

#[test]
fn two_cpus_start() {
    all_start(2);
}

#[test]
fn eight_cpus_start() {
    all_start(8);
}

#[test]
fn sixty_four_cpus_start() {
    all_start(64);
}

#[test]
fn cpus_start_by_the_64_bit_protocol_too() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.bzimage, "smp").cpus(3));
    vm.expect("smp cpus=3 of=3 wrong-ids=0 duplicates=0");
    vm.wait_powered_off();
}

#[test]
fn machine_with_working_cpus_powers_off() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "smp-work").cpus(4));
    vm.expect("cpus=4 working");
    vm.wait_powered_off();
}
