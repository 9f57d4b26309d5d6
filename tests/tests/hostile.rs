//! A guest that misbehaves harms nobody but itself.

use dormouse_tests::{TestVm, VmConfig, kvm_guest};

fn survives(words: &str, sign: &str) {
    let Some(guest) = kvm_guest() else { return };
    for seed in 1..4 {
        let cmdline = format!("seed={seed} {words}");
        let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, &cmdline));
        vm.expect(sign);
        let exit = vm.wait_powered_off();
        assert!(!exit.stderr.contains("panicked"), "{exit:?}");
        assert!(exit.stderr.len() < 100_000, "the log stays bounded");
    }
}

#[test]
fn wild_port_and_memory_accesses_are_harmless() {
    survives("wildio=5000 memory=32", "memory=ok");
}

#[test]
fn wild_configuration_space_accesses_are_harmless() {
    survives("pcifuzz=5000 memory=32", "memory=ok");
}

#[test]
fn string_instructions_on_ports_work() {
    survives("stringio", "stringio=ok");
}
