//! System call filters are on for every thread unless they are turned off, and every mode runs a guest.

use std::fs;

use dormouse_tests::{TestVm, VmConfig, kvm_guest};

/// `Seccomp:` of each thread, as `/proc` has it: 0 none, 2 filter.
fn filters(vm: &TestVm) -> Vec<String> {
    fs::read_dir(format!("/proc/{}/task", vm.pid()))
        .expect("the VMM runs")
        .filter_map(|task| {
            let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            let name = status.lines().next()?.to_owned();
            let mode = status.lines().find(|line| line.starts_with("Seccomp:"))?;
            Some(format!("{name} {mode}"))
        })
        .collect()
}

fn runs(argument: Option<&str>, mode: &str) {
    let Some(guest) = kvm_guest() else { return };
    let words = "memory=32 interrupts smp pci heartbeat=5";
    let mut config = VmConfig::new(&guest.pvh, words).cpus(2);
    if let Some(argument) = argument {
        config = config.argument(argument);
    }
    let vm = TestVm::start(&config);
    vm.expect("heartbeat 3");
    let filters = filters(&vm);
    assert!(filters.len() >= 3, "main and two vCPU threads: {filters:?}");
    for thread in filters {
        assert!(thread.ends_with(&format!("Seccomp:\t{mode}")), "{thread}");
    }
}

#[test]
fn filters_are_on_by_default() {
    runs(None, "2");
}

#[test]
fn filters_can_only_log() {
    runs(Some("--seccomp=log"), "2");
}

#[test]
fn filters_can_be_off() {
    runs(Some("--seccomp=off"), "0");
}
