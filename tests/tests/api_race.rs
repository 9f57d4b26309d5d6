//! Many clients at once, each doing what it likes: every answer is one that the API documents, and the server is there
//! afterwards.

use std::thread;
use std::time::{Duration, Instant};

use dormouse_tests::api::snapshot_body;
use dormouse_tests::{Api, Serial, Snapshot, TestVm, VmConfig, kvm_guest};

const CLIENTS: u64 = 6;
const FOR: Duration = Duration::from_secs(3);

/// A sequence that differs by client (xorshift64).
struct Choices(u64);

impl Choices {
    fn next(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % count
    }
}

/// Sends verbs until `end`; returns how many succeeded.
fn pester(api: &Api, seed: u64, config: &str, end: Instant) -> usize {
    let mut choices = Choices(seed);
    let mut done = 0;
    while Instant::now() < end {
        let target = Snapshot::nowhere();
        let snapshot = snapshot_body(&target.path());
        let restore = snapshot.replace("destination_url", "source_url");
        let requests = [
            ("PUT", "vm.create", config),
            ("PUT", "vm.boot", ""),
            ("PUT", "vm.pause", ""),
            ("PUT", "vm.resume", ""),
            ("PUT", "vm.snapshot", &snapshot),
            ("PUT", "vm.reboot", ""),
            ("PUT", "vm.shutdown", ""),
            ("PUT", "vm.power-button", ""),
            ("PUT", "vm.cancel", ""),
            ("GET", "vm.info", ""),
            ("GET", "vm.counters", ""),
            ("GET", "vm.progress", ""),
            ("GET", "vmm.ping", ""),
            ("PUT", "vm.restore", &restore),
            ("PUT", "vm.create", config),
            ("PUT", "vm.boot", ""),
            ("PUT", "vm.pause", ""),
            ("PUT", "vm.delete", ""),
        ];
        let (method, command, body) = requests[choices.next(requests.len())];
        let answer = api.call(method, command, body);
        assert!(
            matches!(answer.status, 200 | 204 | 404 | 500),
            "{command}: {answer:?}"
        );
        if command == "vm.snapshot" && answer.status == 204 {
            assert!(target.verify().status.success());
        }
        done += usize::from(answer.status < 300);
    }
    done
}

#[test]
fn clients_that_contradict_each_other() {
    let Some(guest) = kvm_guest() else { return };
    let mut vm = TestVm::serve(Serial::Tty);
    let api = vm.api();
    // The guest takes part: it resets when the button is pressed.
    let config = VmConfig::new(&guest.pvh, "fill=4 smp-work button reset").cpus(2);
    let body = vm.create_body(&config);
    let end = Instant::now() + FOR;
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|client| {
            let (api, body) = (api.clone(), body.clone());
            thread::spawn(move || {
                pester(&api, client.wrapping_mul(0x9e37_79b9_7f4a_7c15), &body, end)
            })
        })
        .collect();
    let done: usize = clients
        .into_iter()
        .map(|client| client.join().expect("every answer is documented"))
        .sum();
    assert!(done > 50, "{done} requests succeeded");
    assert!(vm.is_running());
    api.put("vm.delete").expect(204);
    api.call("PUT", "vm.create", &body).expect(204);
    api.put("vm.boot").expect(204);
    assert_eq!(api.state(), "Running");
    api.put("vmm.shutdown").expect(200);
    let exit = vm.wait();
    assert!(
        exit.status.success() && !exit.stderr.contains("panicked"),
        "{exit:?}"
    );
}
