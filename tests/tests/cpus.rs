//! Several CPUs start by INIT and SIPI, each with the APIC ID that its CPUID names.

use dormouse_tests::exit::refused;
use dormouse_tests::{Serial, TestVm, VmConfig, kvm_guest};
use serde_json::json;

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

#[test]
fn host_cpus_that_do_not_exist_are_named() {
    let Some(guest) = kvm_guest() else { return };
    for vcpu in [0, 3] {
        let affinity = json!([{ "vcpu": vcpu, "host_cpus": [1000] }]);
        let config = VmConfig::new(&guest.pvh, "smp-work ask").cpus(4);
        let exit = refused(&config.set("/cpus/affinity", affinity.clone()));
        let who = format!("cannot run vCPU {vcpu}");
        exit.assert_failure(&[&who, "cpus.affinity", "Invalid argument"]);
    }
    let server = TestVm::serve(Serial::Null);
    let affinity = json!([{ "vcpu": 0, "host_cpus": [1000] }]);
    let config = VmConfig::new(&guest.pvh, "ask").set("/cpus/affinity", affinity);
    let api = server.api();
    api.call("PUT", "vm.create", &server.create_body(&config))
        .expect(204);
    api.put("vm.boot")
        .expect_error(500, &["could not boot", "cpus.affinity"]);
    assert_eq!(api.state(), "Created");
}
