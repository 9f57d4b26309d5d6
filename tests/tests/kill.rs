//! SIGKILL at any moment of a snapshot or a restore: the directory holds the whole snapshot, or is seen to hold none and
//! can be used again; a snapshot that is being restored from stays what it was.

use std::thread;
use std::time::{Duration, Instant};

use dormouse_tests::api::snapshot_body;
use dormouse_tests::{Serial, Snapshot, TestVm, VmConfig, kvm_guest};

const MOMENTS: u32 = 20;
/// MiB in use.
const FILLED: u32 = 64;

/// A paused VM.
fn paused() -> Option<TestVm> {
    let guest = kvm_guest()?;
    let words = format!("fill={FILLED} ask");
    let config = VmConfig::new(&guest.pvh, &words).cpus(2);
    let vm = TestVm::start(&config.memory(128 << 20).serial(Serial::Tty).with_api());
    vm.expect("ask>");
    vm.api().put("vm.pause").expect(204);
    Some(vm)
}

/// Moments within and a little beyond `whole`, in no order that a writer might have.
fn moments(whole: Duration) -> impl Iterator<Item = Duration> {
    (0..MOMENTS).map(move |n| whole * (n * 7 % MOMENTS) * 5 / (MOMENTS * 4))
}

fn check_wakes(snapshot: &Snapshot, mode: &[&str]) {
    let mut vm = snapshot.wake(mode);
    vm.type_in(format!("verify={FILLED}\n").as_bytes());
    vm.expect("verify=ok");
}

#[test]
fn killed_while_it_writes() {
    let Some(vm) = paused() else { return };
    let begin = Instant::now();
    let whole = Snapshot::take_paused(&vm);
    let takes = begin.elapsed();
    check_wakes(&whole, &[]);
    drop(vm);
    let (mut complete, mut incomplete) = (0, 0);
    for moment in moments(takes) {
        let Some(vm) = paused() else { return };
        let target = Snapshot::nowhere();
        let (api, body) = (vm.api(), snapshot_body(&target.path()));
        let worker = thread::spawn(move || api.try_call("PUT", "vm.snapshot", &body));
        thread::sleep(moment);
        // SIGKILL.
        drop(vm);
        let answered = worker.join().expect("the client lives").is_ok();
        if target.is_complete() {
            complete += 1;
            let exit = target.verify();
            assert!(exit.status.success(), "{moment:?}: {exit:?}");
            if complete < 4 {
                check_wakes(&target, &[]);
            }
            continue;
        }
        assert!(!answered, "{moment:?}: success was claimed");
        incomplete += 1;
        let path = target.path();
        let path = path.to_str().expect("the name is text");
        for exit in [target.verify(), target.refused_restore(&[])] {
            exit.assert_failure(&[path]);
        }
        if incomplete < 6 {
            // The next attempt finds its way.
            let Some(vm) = paused() else { return };
            vm.api().snapshot(&target.path()).expect(204);
            assert!(target.verify().status.success());
        }
    }
    println!("{complete} complete, {incomplete} incomplete");
    assert!(incomplete > 0, "no moment fell into the snapshot");
}

#[test]
fn killed_while_it_reads() {
    let Some(vm) = paused() else { return };
    let snapshot = Snapshot::take_paused(&vm);
    drop(vm);
    let before = snapshot.fingerprint();
    for mode in [&[][..], &["--verify"]] {
        let begin = Instant::now();
        check_wakes(&snapshot, mode);
        let takes = begin.elapsed();
        for moment in moments(takes) {
            let vm = snapshot.wake(mode);
            thread::sleep(moment);
            drop(vm);
        }
        assert_eq!(snapshot.fingerprint(), before);
        check_wakes(&snapshot, mode);
    }
}
