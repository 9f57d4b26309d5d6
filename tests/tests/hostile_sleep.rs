//! A guest that misbehaves cannot disturb pause, resume, snapshot and restore, nor they it.

use dormouse_tests::vm::SOON;
use dormouse_tests::{Serial, Snapshot, TestVm, VmConfig, kvm_guest};

/// Rounds of pausing and resuming while the guest is at it.
const ROUNDS: usize = 20;

/// The guest does `storm` again and again; it must be alive after all that happened.
fn weathers(storm: &str, sign: &str) {
    let Some(guest) = kvm_guest() else { return };
    let storms = [storm; 12].join(" ");
    let words = format!("fill=8 seed=7 {storms} verify=8 ask");
    let config = VmConfig::new(&guest.pvh, &words).cpus(2);
    let vm = TestVm::start(&config.serial(Serial::Tty).with_api());
    vm.expect("fill=done");
    let api = vm.api();
    let mut snapshots = Vec::new();
    for round in 0..ROUNDS {
        api.put("vm.pause").expect(204);
        if round % 5 == 0 {
            snapshots.push(Snapshot::take_paused(&vm));
        }
        api.put("vm.resume").expect(204);
    }
    // Those that woke finish what was under way when they fell asleep.
    let mut woken: Vec<TestVm> = snapshots.iter().map(|asleep| asleep.wake(&[])).collect();
    woken.push(vm);
    for mut vm in woken {
        let done = vm
            .console()
            .wait_for(2 * SOON, |text| text.contains("ask>").then_some(()));
        assert!(done.is_ok(), "{:?} {}", done, vm.stderr().text());
        let text = vm.console().text();
        assert!(
            text.contains(sign) && text.contains("verify=ok"),
            "{text:.4000}"
        );
        assert!(vm.is_running());
        vm.type_in(b"poweroff\n");
        let exit = vm.wait_powered_off();
        assert!(!exit.stderr.contains("panicked"), "{exit:?}");
        assert!(exit.stderr.len() < 100_000, "the log stays bounded");
    }
}

#[test]
fn configuration_space_storm() {
    weathers("pcifuzz=1000", "pcifuzz=alive");
}

#[test]
fn port_and_memory_storm() {
    weathers("wildio=1000", "wildio=alive");
}

#[test]
fn reset_storm() {
    let Some(guest) = kvm_guest() else { return };
    // With so little to do before, the guest often asks for its reset just when it is paused.
    let config = VmConfig::new(&guest.pvh, "reset").serial(Serial::Tty);
    let mut vm = TestVm::start(&config.with_api());
    vm.expect("hello");
    let api = vm.api();
    for _ in 0..10 * ROUNDS {
        api.put("vm.pause").expect(204);
        // Also when the guest had asked for its reset right then.
        assert_eq!(api.state(), "Paused");
        api.put("vm.resume").expect(204);
    }
    let starts = vm.console().text().matches("hello").count();
    let more = vm.console().wait_for(SOON, |text| {
        (text.matches("hello").count() > starts + 1).then_some(())
    });
    assert!(more.is_ok(), "{}", vm.stderr().text());
    assert!(vm.is_running());
    assert!(!vm.stderr().text().contains("panicked"));
}
