//! Progress bars: on a terminal, gone when the action is done, and nowhere else.

use std::process::Command;

use dormouse_tests::binary::dormouse;
use dormouse_tests::vm::SOON;
use dormouse_tests::{Serial, Snapshot, Terminal, TestVm, VmConfig, kvm_guest};

const ERASE_LINE: &str = "\x1b[K";

#[test]
fn verify_draws_a_bar_on_a_terminal_and_erases_it() {
    let Some(guest) = kvm_guest() else { return };
    let vm = TestVm::start(&VmConfig::new(&guest.pvh, "ask").with_api());
    let snapshot = Snapshot::take(&vm);
    drop(vm);

    let terminal = Terminal::new();
    let mut command = Command::new(dormouse());
    command.args(["snapshot", "verify"]).arg(snapshot.path());
    terminal.attach_all(&mut command);
    let screen = terminal.capture();
    let mut verifying = command.spawn().expect("the binary can be started");
    let text = screen
        .wait_for(SOON, |text| {
            text.contains(" of RAM in use\n").then(|| text.to_owned())
        })
        .unwrap_or_else(|text| panic!("no result: {text}"));
    assert!(verifying.wait().expect("a child").success());

    let (bar, result) = text
        .rsplit_once(ERASE_LINE)
        .unwrap_or_else(|| panic!("no bar was erased: {text}"));
    let full = bar.rsplit_once("100%|");
    let (_, full) = full.unwrap_or_else(|| panic!("the bar is not full at the end: {bar}"));
    assert_eq!("100%|".len() + full.chars().count(), 80, "{bar}");
    assert!(result.contains(": intact: "), "{result}");

    assert_eq!(snapshot.verify().stderr, "", "no bar where no terminal is");
}

/// A restore that takes its time, so that there is a bar while the log is written.
#[test]
fn log_takes_the_place_of_a_bar() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "ask")
        .memory(1 << 30)
        .serial(Serial::Null);
    let vm = TestVm::start(&config.with_api());
    vm.api().wait_for_state("Running");
    let snapshot = Snapshot::take(&vm);
    drop(vm);

    let terminal = Terminal::new();
    let mut command = Command::new(dormouse());
    command
        .args(["restore", "--resume", "--prefault", "--snapshot"])
        .arg(snapshot.path());
    terminal.attach_all(&mut command);
    let screen = terminal.capture();
    let mut waking = command.spawn().expect("the binary can be started");
    let text = screen.wait_for(SOON, |text| {
        text.contains("done operation=Restore")
            .then(|| text.to_owned())
    });
    let _ = waking.kill();
    let _ = waking.wait();
    let text = text.unwrap_or_else(|text| panic!("no end of the restore: {text}"));

    assert!(text.contains("phase=\"load memory\""), "{text}");
    for line in text.lines().filter(|line| line.contains(" INFO ")) {
        let shown = line
            .rsplit_once(ERASE_LINE)
            .map_or(line, |(_, shown)| shown);
        assert!(shown.starts_with(" INFO "), "{line:?}");
    }
}
