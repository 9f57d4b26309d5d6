//! How a VM ends or begins again: by its guest, by a fault, by a signal.

use std::thread;
use std::time::Duration;

use dormouse_tests::vm::{SOON, wrap};
use dormouse_tests::{Serial, Terminal, TestVm, VmConfig, kvm_guest};
use rustix::process::Signal;

const HELLO: &str = "DORMOUSE-GUEST hello";

/// Waits until the guest has started `times` times.
fn expect_starts(vm: &TestVm, times: usize) {
    let starts = vm.console().wait_for(SOON, |text| {
        (text.matches(HELLO).count() == times && text.ends_with("ask>\n")).then_some(())
    });
    starts.unwrap_or_else(|text| panic!("not {times} starts: {text}\n{}", vm.stderr().text()));
}

fn restarts(how: &str, cpus: u32) {
    let Some(guest) = kvm_guest() else { return };
    for image in [&guest.pvh, &guest.bzimage] {
        let config = VmConfig::new(image, "smp-work ask")
            .cpus(cpus)
            .serial(Serial::Tty);
        let mut vm = TestVm::start(&config);
        for times in 1..4 {
            expect_starts(&vm, times);
            assert!(vm.is_running());
            vm.type_in(format!("{how}\n").as_bytes());
        }
        expect_starts(&vm, 4);
        vm.type_in(b"interrupts\n");
        vm.expect("serial-irq thre=ok rx=ok");
        vm.type_in(b"poweroff\n");
        vm.wait_powered_off();
    }
}

#[test]
fn acpi_reset_starts_the_guest_again() {
    restarts("reset", 1);
}

#[test]
fn acpi_reset_stops_working_cpus() {
    restarts("reset", 3);
}

#[test]
fn i8042_reset_starts_the_guest_again() {
    restarts("reset-i8042", 1);
}

#[test]
fn power_off_ends_with_exit_code_0() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "poweroff"));
    let exit = vm.wait_powered_off();
    assert_eq!(exit.status.code(), Some(0));
    assert!(!exit.stderr.contains("error"), "{exit:?}");
}

#[test]
fn triple_fault_is_reported() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "triple"));
    vm.wait().assert_failure(&["triple fault"]);
}

#[test]
fn triple_fault_of_one_cpu_among_many_is_reported() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "smp-work triple").cpus(4));
    vm.wait().assert_failure(&["triple fault"]);
}

#[test]
fn code_that_kvm_cannot_run_is_reported() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "jump-mmio"));
    let exit = vm.wait();
    assert!(vm.console().text().contains("jump to mmio"));
    exit.assert_failure(&["vcpu"]);
}

#[test]
fn faults_dump_the_registers_at_debug_level() {
    let Some(guest) = kvm_guest() else { return };
    for (level, dumped) in [("info", false), ("debug", true)] {
        let config = VmConfig::new(&guest.pvh, "triple").argument("--log-level");
        let mut vm = TestVm::start(&config.argument(level));
        let exit = vm.wait();
        exit.assert_failure(&["triple fault"]);
        assert_eq!(
            exit.stderr.to_lowercase().contains("rflags"),
            dumped,
            "{exit:?}"
        );
    }
}

#[test]
fn signals_end_the_vm_and_restore_the_terminal() {
    let Some(guest) = kvm_guest() else { return };
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        for words in ["ask", "smp-work heartbeat=5", "spin"] {
            let terminal = Terminal::new();
            let before = terminal.settings();
            let config = VmConfig::new(&guest.pvh, words).cpus(2).serial(Serial::Tty);
            let mut vm = TestVm::start_with(&config, |command| {
                // Whatever started the tests may have some ignored.
                wrap(command, &["env", "--default-signal"]);
                terminal.attach(command);
            });
            vm.expect_in(&terminal.capture(), HELLO);
            vm.signal(signal);
            let exit = vm.wait();
            assert_eq!(exit.status.code(), Some(0), "{words}: {exit:?}");
            assert_eq!(terminal.settings(), before, "{words}");
        }
    }
}

#[test]
fn hangup_that_was_ignored_at_the_start_stays_so() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "heartbeat=5").serial(Serial::Tty);
    let mut vm = TestVm::start_with(&config, |command| {
        wrap(command, &["nohup"]);
    });
    vm.expect("heartbeat 3");
    vm.signal(Signal::HUP);
    vm.expect("heartbeat 30");
    vm.signal(Signal::TERM);
    assert_eq!(vm.wait().status.code(), Some(0));
}

#[test]
fn failures_restore_the_terminal() {
    let Some(guest) = kvm_guest() else { return };
    for words in ["triple", "jump-mmio"] {
        let terminal = Terminal::new();
        let before = terminal.settings();
        let config = VmConfig::new(&guest.pvh, words).serial(Serial::Tty);
        let mut vm = TestVm::start_with(&config, |command| terminal.attach(command));
        let _screen = terminal.capture();
        vm.wait().assert_failure(&[]);
        assert_eq!(terminal.settings(), before, "{words}");
    }
}

#[test]
fn signal_before_the_guest_starts_ends_the_vmm() {
    let Some(guest) = kvm_guest() else { return };
    for moment in 0..40 {
        let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "spin"));
        thread::sleep(moment * Duration::from_micros(200));
        vm.signal(Signal::TERM);
        // Before the handler is there the signal's own effect is an end as good.
        vm.wait();
    }
}
