//! The serial port in each of its modes: output arrives, input interrupts the guest, and nobody on the host side can
//! stall the guest.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_tests::vm::SOON;
use dormouse_tests::{Capture, Job, Serial, Terminal, TestVm, VmConfig, kvm_guest};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::json;

#[test]
fn file_is_appended_to() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "written before\n").unwrap();
    let config = VmConfig::new(&guest.pvh, "");
    let mut vm = TestVm::start(&config.set("/serial", json!({ "mode": "File", "file": path })));
    vm.wait_powered_off();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "written before\nDORMOUSE-GUEST hello\n"
    );
}

#[test]
fn standard_input_is_echoed_by_interrupt() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "echo").serial(Serial::Tty));
    vm.expect("echo ready");
    vm.type_in(b"through a pipe\n");
    vm.expect("through a pipe");
    vm.type_in(b"\x04");
    vm.expect("echo=done bytes=15");
    vm.wait_powered_off();
}

#[test]
fn long_input_loses_nothing() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "echo").serial(Serial::Tty));
    vm.expect("echo ready");
    let text: String = (0..500).map(|n| format!("{n:07}\n")).collect();
    vm.type_in(text.as_bytes());
    vm.type_in(b"\x04");
    vm.expect("echo=done bytes=4000");
    vm.wait_powered_off();
    assert!(vm.console().text().contains(&text));
}

#[test]
fn input_at_its_end_leaves_the_guest_alone() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "heartbeat=5").serial(Serial::Tty);
    let vm = TestVm::start_with(&config, |command| {
        command.stdin(Stdio::null());
    });
    vm.expect("heartbeat 20");
}

#[test]
fn terminal_is_raw_while_the_guest_runs() {
    let Some(guest) = kvm_guest() else { return };
    let mut terminal = Terminal::new();
    let before = terminal.settings();
    let config = VmConfig::new(&guest.pvh, "echo").serial(Serial::Tty);
    let mut vm = TestVm::start_with(&config, |command| terminal.attach(command));
    let screen = terminal.capture();
    vm.expect_in(&screen, "echo ready");
    assert!(terminal.is_raw());
    terminal.type_in(b"typed\n");
    vm.expect_in(&screen, "typed");
    // Ctrl-C belongs to the guest.
    terminal.type_in(b"\x03\x04");
    vm.expect_in(&screen, "echo=done bytes=7");
    vm.wait_powered_off();
    assert_eq!(terminal.settings(), before);
}

#[test]
fn file_at_its_limit_loses_output_and_no_more() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "heartbeat=5"));
    vm.expect("heartbeat 3");
    let pid = Pid::from_raw(vm.pid().try_into().unwrap());
    let limit = Rlimit {
        current: Some(10),
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).expect("the VMM runs");
    vm.expect_in(vm.stderr(), "of output: File too large");
    let limit = Rlimit {
        current: None,
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).expect("the VMM runs");
    let heard = vm.console().text().lines().count();
    let goes_on = |text: &str| (text.lines().count() > heard + 3).then_some(());
    vm.console().wait_for(SOON, goes_on).expect("it goes on");
    vm.signal(Signal::TERM);
    assert_eq!(vm.wait().status.code(), Some(0));
}

#[test]
fn controlling_terminal_is_raw_until_the_vm_ends() {
    let Some(guest) = kvm_guest() else { return };
    let mut terminal = Terminal::new();
    let before = terminal.settings();
    for signal in [None, Some(Signal::TERM)] {
        let config = VmConfig::new(&guest.pvh, "echo").serial(Serial::Tty);
        let mut vm = TestVm::start_with(&config, |command| {
            terminal.control(command, Job::Foreground);
        });
        let screen = terminal.capture();
        vm.expect_in(&screen, "echo ready");
        assert!(terminal.is_raw());
        terminal.type_in(b"typed\n");
        vm.expect_in(&screen, "typed");
        match signal {
            Some(signal) => vm.signal_job(signal),
            None => terminal.type_in(b"\x03\x04"),
        }
        let deadline = Instant::now() + SOON;
        while terminal.is_raw() {
            assert!(Instant::now() < deadline, "{}", vm.stderr().text());
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(terminal.settings(), before);
        // The shell waits for it.
        terminal.type_in(b"\n");
        let exit = vm.wait();
        assert!(exit.status.success(), "{signal:?}: {exit:?}");
        // The end of the session has hung the terminal up.
        terminal = Terminal::new();
    }
}

#[test]
fn job_in_the_background_leaves_the_terminal_alone() {
    let Some(guest) = kvm_guest() else { return };
    let mut terminal = Terminal::new();
    let before = terminal.settings();
    let config = VmConfig::new(&guest.pvh, "echo").serial(Serial::Tty);
    let mut vm = TestVm::start_with(&config, |command| {
        terminal.control(command, Job::Background);
    });
    let screen = terminal.capture();
    vm.expect_in(&screen, "echo ready");
    vm.expect_in(
        vm.stderr(),
        "no input, since the process is in the background",
    );
    assert_eq!(terminal.settings(), before);
    terminal.type_in(b"for the shell\n\x04");
    // Long enough for a guest that gets it to answer.
    thread::sleep(Duration::from_millis(300));
    assert!(!screen.text().contains("echo=done"), "{}", screen.text());
    vm.signal_job(Signal::TERM);
    let exit = vm.wait();
    assert!(exit.status.success(), "{exit:?}");
}

#[test]
fn pty_is_announced_and_works() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "ask").serial(Serial::Pty);
    let mut vm = TestVm::start(&config.with_api());
    let path = vm.stderr().wait_for(SOON, |text| {
        let start = text.find("/dev/pts/")?;
        let number = text[start + 9..]
            .split(|c: char| !c.is_ascii_digit())
            .next()?;
        Some(format!("/dev/pts/{number}"))
    });
    let path = path.expect("the log names the pseudo-terminal");
    vm.api().wait_for_state("Running");
    let serial = &vm.api().get("vm.info").json()["config"]["serial"];
    assert_eq!(serial, &json!({ "mode": "Pty", "file": path }));
    let mut pty = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let screen = Capture::stream(pty.try_clone().unwrap());
    pty.write_all(b"memmap\n").unwrap();
    vm.expect_in(&screen, "boot=pvh");
    pty.write_all(b"poweroff\n").unwrap();
    vm.wait_powered_off();
}

#[test]
fn socket_takes_one_client_after_another() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "ask").serial(Serial::Socket));
    for _ in 0..3 {
        let mut socket = vm.connect_serial();
        let screen = Capture::stream(socket.try_clone().unwrap());
        socket.write_all(b"memmap\n").unwrap();
        vm.expect_in(&screen, "boot=pvh");
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
    vm.connect_serial().write_all(b"poweroff\n").unwrap();
    vm.wait_powered_off();
}

#[test]
fn guest_without_a_listener_runs() {
    let Some(guest) = kvm_guest() else { return };
    for serial in [Serial::Null, Serial::Off, Serial::Socket, Serial::Pty] {
        let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "flood=64").serial(serial));
        vm.wait_powered_off();
    }
}

#[test]
fn flood_arrives_whole() {
    let Some(guest) = kvm_guest() else { return };
    for serial in [Serial::File, Serial::Tty] {
        let mut vm = TestVm::start(&VmConfig::new(&guest.pvh, "flood=128").serial(serial));
        vm.expect("flood=done");
        vm.wait_powered_off();
        let text = vm.console().text();
        let lines = text
            .lines()
            .filter(|line| line.ends_with("...."))
            .enumerate();
        let mut count = 0;
        for (number, line) in lines {
            assert_eq!(line.get(..15), Some(format!("{number:015}").as_str()));
            count += 1;
        }
        assert_eq!(count, 128 * 16);
    }
}

#[test]
fn reader_that_never_reads_does_not_stall_the_guest() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "flood=256").serial(Serial::Tty);
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    let mut vm = TestVm::start_with(&config, |command| {
        command.stdout(writer);
    });
    vm.wait_powered_off();
    drop(reader);

    let terminal = Terminal::new();
    let mut vm = TestVm::start_with(&config, |command| terminal.attach(command));
    vm.wait_powered_off();

    let config = VmConfig::new(&guest.pvh, "ask").serial(Serial::Socket);
    let mut vm = TestVm::start(&config);
    let mut socket = vm.connect_serial();
    socket.write_all(b"flood=512\npoweroff\n").unwrap();
    vm.wait_powered_off();
}

#[test]
fn reader_that_goes_away_does_not_end_the_vm() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "flood=64").serial(Serial::Tty);
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    let mut vm = TestVm::start_with(&config, |command| {
        command.stdout(writer);
    });
    vm.wait_powered_off();
}
