//! Timer and serial interrupts reach the guest through LAPIC and IOAPIC.

use dormouse_tests::{TestVm, VmConfig, kvm_guest};

#[test]
fn timer_and_serial_port_interrupt() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "interrupts"));
    vm.expect("timer=ok ticks=20 ");
    assert!(
        vm.expect("serial-irq")
            .starts_with("serial-irq thre=ok rx=ok")
    );
    vm.wait_powered_off();
}

#[test]
fn heartbeat_goes_on_while_other_cpus_work() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "smp-work clock heartbeat=5").cpus(2);
    let vm = TestVm::start(&config);
    let work = |line: &str| {
        line.split(" ap=")
            .nth(1)
            .and_then(|ap| ap.parse::<u64>().ok())
    };
    let first = work(&vm.expect("heartbeat 1 ")).expect("a count");
    let later = work(&vm.expect("heartbeat 20 ")).expect("a count");
    assert!(later > first, "{first} and then {later}");
}
