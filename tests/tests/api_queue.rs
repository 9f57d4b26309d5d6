//! Requests that wait for the main loop: few of them, none for nothing, and neither they nor those that come without a
//! pause keep the VMM from anything else.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_tests::vm::SOON;
use dormouse_tests::{Serial, Snapshot, TestVm, VmConfig, kvm_guest};
use rustix::process::Signal;

/// Requests that may wait at a time.
const WAITING_LIMIT: usize = 8;

/// Names of the VMM's threads.
fn threads(vm: &TestVm) -> Vec<String> {
    fs::read_dir(format!("/proc/{}/task", vm.pid()))
        .expect("the VMM runs")
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn too_many_requests_are_refused_at_once_and_need_no_threads() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "fill=256 ask").memory(1 << 30);
    let vm = TestVm::start(&config.serial(Serial::Tty).with_api());
    let filled = vm.console().line(4 * SOON, "ask>");
    assert!(filled.is_ok(), "{filled:?} {}", vm.stderr().text());
    let api = vm.api();
    api.put("vm.pause").expect(204);
    let snapshot = Snapshot::nowhere();
    let worker = thread::spawn({
        let (api, path) = (api.clone(), snapshot.path());
        move || api.snapshot(&path)
    });
    while api.phase().is_none() {
        assert!(!worker.is_finished(), "no question fell into the snapshot");
    }
    let others: Vec<_> = (0..2 * WAITING_LIMIT)
        .map(|_| {
            let api = api.clone();
            thread::spawn(move || api.put("vm.pause"))
        })
        .collect();
    while !worker.is_finished() {
        api.get("vmm.ping").expect(200);
        let threads = threads(&vm);
        let serving = threads.iter().filter(|name| name.starts_with("api"));
        assert_eq!(serving.count(), 1, "{threads:?}");
    }
    worker.join().expect("the client lives").expect(204);
    let mut refused = 0;
    for other in others {
        let answer = other.join().expect("the client lives");
        if answer.status == 429 {
            answer.expect_error(429, &["8 requests wait already"]);
            refused += 1;
        } else {
            answer.expect_error(500, &["already paused"]);
        }
    }
    assert!((1..=WAITING_LIMIT).contains(&refused), "{refused}");
    api.put("vm.resume").expect(204);
}

#[test]
fn signal_ends_a_vmm_that_is_never_idle() {
    let Some(_) = kvm_guest() else { return };
    let mut vm = TestVm::serve(Serial::Null);
    let api = vm.api();
    api.get("vmm.ping").expect(200);
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let api = api.clone();
            let end = Instant::now() + SOON;
            thread::spawn(move || {
                let mut done = 0;
                while let Ok(answer) = api.try_call("PUT", "vm.delete", "") {
                    if answer.status != 204 {
                        answer.expect_error(500, &["the VMM is shutting down"]);
                        break;
                    }
                    done += 1;
                    assert!(Instant::now() < end, "the VMM does not end");
                }
                done
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    vm.signal(Signal::TERM);
    let exit = vm.wait();
    assert!(exit.status.success(), "{exit:?}");
    let waited = exit.waited;
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
    for client in clients {
        assert!(client.join().expect("every answer is documented") > 0);
    }
}
