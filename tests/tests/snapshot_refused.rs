//! Snapshots that are refused, fail or are cancelled say why, leave nothing behind, and the VM lives on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use dormouse_tests::api::Answer;
use dormouse_tests::not_run::not_run;
use dormouse_tests::vm::SOON;
use dormouse_tests::{Api, Serial, Snapshot, TestVm, VmConfig, kvm_guest};
use rustix::process::Signal;

/// Tries to hit a snapshot while it writes memory; on a fast disk it may be over before.
const ATTEMPTS: usize = 10;

/// A paused VM with `mib` of its memory in use.
fn paused(mib: u64) -> Option<TestVm> {
    let guest = kvm_guest()?;
    let config = VmConfig::new(&guest.pvh, &format!("fill={mib} ask"))
        .memory((mib + 64) << 20)
        .serial(Serial::Tty);
    let vm = TestVm::start(&config.with_api());
    // Each page is a fault of the host, which takes its time on a busy one.
    let filled = vm.console().line(4 * SOON, "ask>");
    assert!(filled.is_ok(), "{filled:?} {}", vm.stderr().text());
    vm.api().put("vm.pause").expect(204);
    Some(vm)
}

/// The VM is still paused, can be put to sleep elsewhere, and runs on with its memory.
fn check_lives_on(vm: &mut TestVm, mib: u64) {
    let api = vm.api();
    assert_eq!(api.state(), "Paused");
    assert_eq!(api.phase(), None);
    let snapshot = Snapshot::take_paused(vm);
    assert!(snapshot.verify().status.success());
    api.put("vm.resume").expect(204);
    vm.type_in(format!("verify={mib}\n").as_bytes());
    vm.expect("verify=ok");
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())))
        .map(Iterator::collect)
        .unwrap_or_default();
    names.sort();
    names
}

#[test]
fn directories_that_hold_something_else_are_left_alone() {
    let Some(mut vm) = paused(4) else { return };
    let api = vm.api();
    let taken = Snapshot::take_paused(&vm);
    let before = taken.fingerprint();
    let path = taken.path();
    api.snapshot(&path)
        .expect_error(500, &["already holds a snapshot", path.to_str().unwrap()]);
    assert_eq!(taken.fingerprint(), before);

    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("precious");
    fs::write(&foreign, "data").unwrap();
    api.snapshot(dir.path())
        .expect_error(500, &[foreign.to_str().unwrap()]);
    assert_eq!(names(dir.path()), std::slice::from_ref(&foreign));
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "data");

    api.snapshot(&foreign)
        .expect_error(500, &[foreign.to_str().unwrap()]);
    api.snapshot(Path::new("/nonexistent/parent/snapshot"))
        .expect_error(500, &["/nonexistent/parent/snapshot"]);
    api.snapshot(Path::new("/proc/snapshot"))
        .expect_error(500, &["/proc/snapshot"]);
    check_lives_on(&mut vm, 4);
}

/// A file system in memory, unmounted with the value.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(options: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output()
            .map_err(|error| format!("mount cannot be run: {error}"))?;
        if !mounted.status.success() {
            let reason = String::from_utf8_lossy(&mounted.stderr);
            return Err(format!("no tmpfs can be mounted: {}", reason.trim()));
        }
        Ok(Self { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

#[test]
fn full_disk_is_named_and_cleaned() {
    let Some(mut vm) = paused(64) else { return };
    // Too small for memory, for state, and for anything.
    for size in ["8m", "64k", "8k"] {
        let disk = match SmallDisk::mount(&format!("size={size}")) {
            Ok(disk) => disk,
            Err(reason) => return not_run(&reason),
        };
        let path = disk.dir.path().join("snapshot");
        vm.api()
            .snapshot(&path)
            .expect_error(500, &[path.to_str().unwrap(), "No space left"]);
        assert_eq!(names(disk.dir.path()), [] as [PathBuf; 0], "{size}");
    }
    check_lives_on(&mut vm, 64);
}

#[test]
fn read_only_disk_is_named() {
    let Some(mut vm) = paused(4) else { return };
    let disk = match SmallDisk::mount("ro") {
        Ok(disk) => disk,
        Err(reason) => return not_run(&reason),
    };
    let path = disk.dir.path().join("snapshot");
    vm.api()
        .snapshot(&path)
        .expect_error(500, &[path.to_str().unwrap(), "Read-only"]);
    check_lives_on(&mut vm, 4);
}

/// Starts a snapshot and waits until it writes memory; `None` when it was over before that was seen.
fn writing(api: &Api, path: &Path) -> Option<JoinHandle<Result<Answer, String>>> {
    let body = dormouse_tests::api::snapshot_body(path);
    let worker = std::thread::spawn({
        let api = api.clone();
        move || api.try_call("PUT", "vm.snapshot", &body)
    });
    while !worker.is_finished() {
        if api.phase().as_deref() == Some("memory") {
            return Some(worker);
        }
    }
    let answer = worker.join().expect("the client lives");
    answer.expect("it is answered").expect(204);
    None
}

#[test]
fn cancelled_over_http() {
    let Some(mut vm) = paused(192) else { return };
    let api = vm.api();
    // Without an action to cancel nothing happens, now or to the next action.
    api.put("vm.cancel").expect(204);
    for _ in 0..ATTEMPTS {
        let target = Snapshot::nowhere();
        let Some(worker) = writing(&api, &target.path()) else {
            continue;
        };
        api.put("vm.cancel").expect(204);
        let answer = worker.join().expect("the client lives").unwrap();
        if answer.status == 204 {
            assert!(target.verify().status.success());
            continue;
        }
        answer.expect_error(500, &["cancelled"]);
        assert!(!target.path().exists(), "{:?}", names(&target.path()));
        check_lives_on(&mut vm, 192);
        return;
    }
    not_run("this disk is too fast to cancel a snapshot");
}

#[test]
fn signal_during_a_snapshot_ends_the_vmm_and_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut hit = false;
        for _ in 0..ATTEMPTS {
            let Some(mut vm) = paused(192) else { return };
            let target = Snapshot::nowhere();
            let Some(worker) = writing(&vm.api(), &target.path()) else {
                continue;
            };
            vm.signal(signal);
            let exit = vm.wait();
            let _ = worker.join();
            assert_eq!(exit.status.code(), Some(0), "{exit:?}");
            assert!(!exit.stderr.contains("panicked"), "{exit:?}");
            assert!(exit.waited < Duration::from_secs(10), "{exit:?}");
            if target.is_complete() {
                assert!(target.verify().status.success());
                continue;
            }
            assert!(!target.path().exists(), "{:?}", names(&target.path()));
            hit = true;
            break;
        }
        if !hit {
            return not_run("this disk is too fast to interrupt a snapshot");
        }
    }
}

/// Starts a restore of all of memory and waits until it reads; `None` when it was over before that was seen.
fn reading(vm: &TestVm, snapshot: &Snapshot) -> Option<JoinHandle<Result<Answer, String>>> {
    let api = vm.api();
    let body = format!(
        r#"{{"source_url":"file://{}","memory_restore_mode":"Copy","verify":true}}"#,
        snapshot.path().display()
    );
    let worker = std::thread::spawn({
        let api = api.clone();
        move || api.try_call("PUT", "vm.restore", &body)
    });
    while !worker.is_finished() {
        if api.phase().is_some() {
            return Some(worker);
        }
    }
    let answer = worker.join().expect("the client lives");
    answer.expect("it is answered").expect(204);
    api.put("vm.delete").expect(204);
    None
}

#[test]
fn cancelled_restore_leaves_a_server_that_can_restore() {
    let Some(vm) = paused(192) else { return };
    let snapshot = Snapshot::take_paused(&vm);
    drop(vm);
    let mut server = TestVm::serve(Serial::Tty);
    let api = server.api();
    api.get("vmm.ping").expect(200);
    for _ in 0..ATTEMPTS {
        let Some(worker) = reading(&server, &snapshot) else {
            continue;
        };
        api.get("vmm.ping").expect(200);
        api.put("vm.cancel").expect(204);
        let answer = worker.join().expect("the client lives").unwrap();
        if answer.status == 204 {
            api.put("vm.delete").expect(204);
            continue;
        }
        answer.expect_error(500, &["cancelled"]);
        api.get("vm.info").expect(404);
        let body = format!(
            r#"{{"source_url":"file://{}","resume":true}}"#,
            snapshot.path().display()
        );
        api.call("PUT", "vm.restore", &body).expect(204);
        server.type_in(b"verify=192\n");
        server.expect("verify=ok");
        return;
    }
    not_run("this disk is too fast to cancel a restore");
}

#[test]
fn signal_during_a_restore_ends_the_vmm() {
    let Some(vm) = paused(192) else { return };
    let snapshot = Snapshot::take_paused(&vm);
    drop(vm);
    let before = snapshot.fingerprint();
    for _ in 0..ATTEMPTS {
        let mut vm = snapshot.wake(&["--verify"]);
        let api = vm.api();
        let early = loop {
            let progress = api.try_call("GET", "vm.progress", "");
            let progress = progress.map(|answer| answer.json());
            if progress.is_ok_and(|progress| progress["phase"].is_string()) {
                break true;
            }
            let info = api.try_call("GET", "vm.info", "");
            if info.is_ok_and(|info| info.status == 200) {
                break false;
            }
            assert!(vm.is_running(), "{}", vm.stderr().text());
        };
        vm.signal(Signal::TERM);
        let exit = vm.wait();
        assert!(!exit.stderr.contains("panicked"), "{exit:?}");
        assert!(exit.waited < Duration::from_secs(10), "{exit:?}");
        // Restored before the signal came, it ends as any VM does.
        if early && !exit.status.success() {
            // What was asked for did not happen.
            exit.assert_failure(&["cancelled"]);
            assert_eq!(snapshot.fingerprint(), before);
            return;
        }
    }
    not_run("this disk is too fast to interrupt a restore");
}
