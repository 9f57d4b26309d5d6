//! Snapshots as files: taken again and again, of every kind of memory, small for a big VM, and never changed by the VMs
//! that run from them.

use std::fs;

use dormouse_tests::not_run::not_run;
use dormouse_tests::snapshot::disk_bytes;
use dormouse_tests::{HugePages, Serial, Snapshot, TestVm, VmConfig, kvm_guest};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Starts a VM with a pattern in its memory that now waits for words.
fn filled(adjust: impl FnOnce(VmConfig) -> VmConfig) -> Option<TestVm> {
    let guest = kvm_guest()?;
    let config = VmConfig::new(&guest.pvh, "fill=16 ask").serial(Serial::Tty);
    let vm = TestVm::start(&adjust(config).with_api());
    vm.expect("fill=done");
    vm.expect("ask>");
    Some(vm)
}

/// The guest lives, with its memory.
fn check_alive(vm: &mut TestVm) {
    let verified = vm.console().text().matches("verify=").count();
    vm.type_in(b"verify=16\n");
    let result = vm.console().wait_for(dormouse_tests::vm::SOON, |text| {
        let line = text.split("verify=").nth(verified + 1)?;
        line.contains('\n').then(|| line.to_owned())
    });
    let result = result.unwrap_or_else(|text| panic!("{text}\n{}", vm.stderr().text()));
    assert!(result.starts_with("ok"), "{result}");
}

fn survives(adjust: impl FnOnce(VmConfig) -> VmConfig, modes: &[&[&str]]) {
    let Some(vm) = filled(adjust) else { return };
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    assert!(snapshot.verify().status.success());
    for mode in modes {
        check_alive(&mut snapshot.wake(mode));
    }
}

#[test]
fn plain_memory_in_every_mode() {
    survives(
        |config| config,
        &[&[], &["--eager"], &["--prefault"], &["--verify"]],
    );
}

/// Resident memory of a VMM.
fn resident_bytes(vm: &TestVm) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.expect("the kernel counts it") << 10
}

#[test]
fn memory_comes_back_as_the_command_line_says() {
    let Some(vm) = filled(|config| config) else {
        return;
    };
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let path = snapshot.path();
    let resident = |arguments: &[&str]| {
        let vm = TestVm::serve(Serial::Tty);
        vm.api().get("vmm.ping").expect(200);
        let done = vm.ctl(&[&["restore", path.to_str().unwrap()], arguments].concat());
        assert!(done.status.success(), "{done:?}");
        let config = &vm.api().get("vm.info").json()["config"];
        let prefault = arguments.contains(&"--prefault");
        assert_eq!(config["memory"]["prefault"], prefault);
        resident_bytes(&vm)
    };
    let on_demand = resident(&["--on-demand"]);
    let eager = resident(&[]);
    let prefaulted = resident(&["--prefault"]);
    assert!(on_demand + 8 * MIB < eager, "{on_demand} {eager}");
    assert!(eager + 64 * MIB < prefaulted, "{eager} {prefaulted}");
    let server = TestVm::serve(Serial::Tty);
    let both = server.ctl(&["restore", "/nowhere", "--on-demand", "--prefault"]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

#[test]
fn shared_memory() {
    let shared = |config: VmConfig| config.set("/memory/shared", json!(true));
    survives(shared, &[&[], &["--eager"]]);
}

#[test]
fn prefaulted_memory() {
    survives(
        |config| config.set("/memory/prefault", json!(true)),
        &[&[], &["--eager"]],
    );
}

#[test]
fn huge_pages() {
    if kvm_guest().is_none() {
        return;
    }
    // Each VM ends before the next begins.
    let _pages = match HugePages::reserve(64) {
        Ok(pages) => pages,
        Err(reason) => return not_run(&reason),
    };
    let huge = |config: VmConfig| config.set("/memory/hugepages", json!(true));
    survives(huge, &[&[], &["--eager"]]);
    let shared = |config: VmConfig| huge(config).set("/memory/shared", json!(true));
    survives(shared, &[&[]]);
}

#[test]
fn vm_goes_on_after_each_of_several_snapshots() {
    let Some(mut vm) = filled(|config| config) else {
        return;
    };
    let first = Snapshot::take(&vm);
    let second = Snapshot::take_paused(&vm);
    assert_eq!(
        first.fingerprint()["memory.bin"].2,
        second.fingerprint()["memory.bin"].2,
        "nothing has run between the two"
    );
    for _ in 0..2 {
        vm.api().put("vm.resume").expect(204);
        check_alive(&mut vm);
        let third = Snapshot::take(&vm);
        check_alive(&mut third.wake(&[]));
    }
    for snapshot in [first, second] {
        check_alive(&mut snapshot.wake(&[]));
    }
}

#[test]
fn snapshot_is_never_changed_by_the_vms_that_run_from_it() {
    let Some(vm) = filled(|config| config) else {
        return;
    };
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let before = snapshot.fingerprint();
    let mut vms = [
        snapshot.wake(&[]),
        snapshot.wake(&[]),
        snapshot.wake(&["--eager"]),
    ];
    for vm in &mut vms {
        check_alive(vm);
        // Writes to every page that is there.
        vm.type_in(b"memory=1\n");
        vm.expect("memory=ok");
        vm.type_in(b"fill=64\n");
        vm.expect("fill=done");
    }
    for mut vm in vms {
        vm.type_in(b"poweroff\n");
        vm.wait_powered_off();
    }
    assert_eq!(snapshot.fingerprint(), before);
}

#[test]
fn vm_sleeps_for_generations() {
    let Some(vm) = filled(|config| config) else {
        return;
    };
    let mut snapshot = Snapshot::take(&vm);
    drop(vm);
    for generation in 0..3 {
        let vm = snapshot.wake(if generation == 1 { &["--eager"] } else { &[] });
        vm.api().wait_for_state("Running");
        // Pages that the guest has not touched are still in the file that it woke from, which goes away then.
        let next = Snapshot::take(&vm);
        drop(vm);
        snapshot = next;
    }
    assert!(snapshot.verify().status.success());
    check_alive(&mut snapshot.wake(&["--verify"]));
}

#[test]
fn restored_vm_stays_paused_until_it_is_resumed() {
    let Some(vm) = filled(|config| config.cpus(2)) else {
        return;
    };
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let mut vm = TestVm::restore(&snapshot.path(), &[]);
    let api = vm.api();
    api.wait_for_state("Paused");
    vm.type_in(b"verify=16\n");
    let info = api.get("vm.info").expect(200).json();
    assert_eq!(info["config"]["cpus"]["boot_vcpus"], 2);
    assert_eq!(vm.console().text(), "", "nothing runs");
    api.put("vm.resume").expect(204);
    vm.expect("verify=ok");
}

#[test]
fn big_vm_makes_a_small_snapshot() {
    let Some(vm) = filled(|config| config.memory(6 << 30)) else {
        return;
    };
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let memory = snapshot.file("memory.bin");
    assert!(fs::metadata(&memory).unwrap().len() >= 6 << 30);
    let used = disk_bytes(&memory);
    assert!((16 * MIB..32 * MIB).contains(&used), "{used} bytes of disk");
    assert!(snapshot.verify().status.success());
    for mode in [&[][..], &["--eager"]] {
        let mut vm = snapshot.wake(mode);
        check_alive(&mut vm);
        // Above 4 GiB too.
        vm.type_in(b"memory=512\n");
        vm.expect("memory=ok");
    }
}

#[test]
fn kernel_is_needed_again_only_when_the_guest_resets() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    fs::copy(&guest.pvh, &kernel).unwrap();
    let Some(vm) = filled(|config| config.set("/payload/kernel", json!(kernel))) else {
        return;
    };
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let mut vm = snapshot.wake(&[]);
    check_alive(&mut vm);
    vm.type_in(b"reset\n");
    // The words of the config's command line run again.
    vm.expect("fill=done");
    fs::remove_file(&kernel).unwrap();
    let mut vm = snapshot.wake(&[]);
    check_alive(&mut vm);
    vm.type_in(b"reset\n");
    vm.wait()
        .assert_failure(&["kernel", kernel.to_str().unwrap()]);
}

#[test]
fn files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let Some(vm) = filled(|config| config) else {
        return;
    };
    let snapshot = Snapshot::take(&vm);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(snapshot.path()), 0o700);
    for name in snapshot.fingerprint().keys() {
        assert_eq!(mode(snapshot.file(name)), 0o600, "{name}");
    }
}
