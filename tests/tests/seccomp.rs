//! System call filters are on for every thread unless they are turned off, and every mode runs a guest.

use std::fs;
use std::io::{Read, Write};

use dormouse_tests::vm::connect;
use dormouse_tests::{Serial, TestVm, VmConfig, kvm_guest};

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

/// Sends a long body in pieces, as a client with a small buffer does, and returns the start of the answer.
fn send_in_pieces(vm: &TestVm, body: &[u8]) -> String {
    let mut stream = connect(&vm.api_socket());
    let head = "PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\n";
    let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
    let mut answer = [0; 12];
    let mut exchange = || {
        stream.write_all(head.as_bytes())?;
        for piece in body.chunks(1000) {
            stream.write_all(piece)?;
        }
        stream.read_exact(&mut answer)
    };
    exchange().unwrap_or_else(|error| panic!("no answer: {error}: {}", vm.stderr().text()));
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn long_bodies_are_read_under_the_filters() {
    let Some(_) = kvm_guest() else { return };
    // When the C library gives memory back, and in which thread, differs from process to process.
    for _ in 0..6 {
        let mut vm = TestVm::serve(Serial::Null);
        for mib in [1, 1, 4, 4] {
            let mut body = br#"{"payload":{"kernel":"/none"}}"#.to_vec();
            body.resize(mib << 20, b' ');
            assert_eq!(send_in_pieces(&vm, &body), "HTTP/1.1 204");
            vm.api().put("vm.delete").expect(204);
            body.fill(b'x');
            assert_eq!(send_in_pieces(&vm, &body), "HTTP/1.1 400");
        }
        vm.api().put("vmm.shutdown").expect(200);
        let exit = vm.wait();
        assert!(exit.status.success(), "{exit:?}");
    }
}
