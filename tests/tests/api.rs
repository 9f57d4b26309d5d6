//! The whole life of a VM over HTTP, in `dormouse serve`: what works in which state, and what the answers look like to
//! Cloud Hypervisor's client, curl and Python.

use std::process::Command;
use std::time::{Duration, Instant};

use dormouse_tests::api::snapshot_body;
use dormouse_tests::not_run::not_run;
use dormouse_tests::vm::SOON;
use dormouse_tests::{Api, Serial, Snapshot, TestVm, VmConfig, kvm_guest};

/// What must be answered whatever else runs is answered in this time even on a busy host; a snapshot of much memory
/// takes longer.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A server with a created VM that runs `words`, not booted.
fn created(words: &str) -> Option<(TestVm, Api)> {
    let guest = kvm_guest()?;
    let vm = TestVm::serve(Serial::Tty);
    let api = vm.api();
    let body = vm.create_body(&VmConfig::new(&guest.pvh, words));
    api.call("PUT", "vm.create", &body).expect(204);
    Some((vm, api))
}

#[test]
fn life_of_a_vm() {
    let Some((mut vm, api)) = created("clock heartbeat=5") else {
        return;
    };
    assert_eq!(api.state(), "Created");
    api.put("vm.boot").expect(204);
    vm.expect("heartbeat 5 ");
    assert_eq!(api.state(), "Running");
    let info = api.get("vm.info").json();
    assert_eq!(info["memory_actual_size"], 128 << 20);
    assert_eq!(info["config"]["cpus"]["boot_vcpus"], 1);
    let exits = || api.get("vm.counters").expect(200).json()["vcpus"]["pio_exits"].as_u64();
    let before = exits().expect("exits are counted");
    vm.expect("heartbeat 20 ");
    assert!(exits().expect("exits are counted") > before);

    api.put("vm.pause").expect(204);
    assert_eq!(api.state(), "Paused");
    let snapshot = Snapshot::take_paused(&vm);
    assert_eq!(api.state(), "Paused");
    api.put("vm.resume").expect(204);
    assert_eq!(api.state(), "Running");
    vm.expect("heartbeat 60 ");

    api.put("vm.shutdown").expect(204);
    assert_eq!(api.state(), "Created");
    api.put("vm.boot").expect(204);
    api.put("vm.delete").expect(204);
    api.get("vm.info").expect(404);
    let body = format!(
        r#"{{"source_url":"file://{}","prefault":false,"memory_restore_mode":"OnDemand","net_fds":null,"vfio_fds":null,"iommufd_fd":null,"resume":false,"zone_updates":[]}}"#,
        snapshot.path().display()
    );
    api.call("PUT", "vm.restore", &body).expect(204);
    assert_eq!(api.state(), "Paused");
    api.put("vm.resume").expect(204);
    assert_eq!(api.state(), "Running");
    vm.expect("heartbeat 80 ");
    let ended = api.put("vmm.shutdown").expect(200);
    assert!(ended.head.contains("Content-Length: 0"), "{ended:?}");
    assert!(vm.wait().status.success());
}

#[test]
fn wrong_states_have_cloud_hypervisors_statuses() {
    let Some(guest) = kvm_guest() else { return };
    let vm = TestVm::serve(Serial::Tty);
    let api = vm.api();
    let nowhere = Snapshot::nowhere();
    let snapshot = snapshot_body(&nowhere.path());
    // Nothing is there.
    api.get("vm.info").expect_error(404, &["Error from API"]);
    api.put("vm.boot")
        .expect_error(404, &["could not boot", "VM config is missing"]);
    api.put("vm.reboot").expect_error(404, &["rebooted"]);
    api.put("vm.delete").expect(204);
    let no_machine = |api: &Api| {
        api.get("vm.counters")
            .expect_error(500, &["VM is not running"]);
        for command in ["vm.pause", "vm.resume", "vm.shutdown", "vm.power-button"] {
            api.put(command).expect_error(500, &["VM is not running"]);
        }
        api.call("PUT", "vm.snapshot", &snapshot)
            .expect_error(500, &["could not be snapshotted"]);
    };
    no_machine(&api);
    // Created.
    let body = vm.create_body(&VmConfig::new(&guest.pvh, "heartbeat=5"));
    api.call("PUT", "vm.create", &body).expect(204);
    api.call("PUT", "vm.create", &body)
        .expect_error(500, &["could not be created", "VM is already created"]);
    no_machine(&api);
    // Running.
    api.put("vm.boot").expect(204);
    api.put("vm.boot").expect_error(500, &["could not boot"]);
    api.put("vm.resume").expect_error(500, &["not paused"]);
    api.call("PUT", "vm.snapshot", &snapshot)
        .expect_error(500, &["not paused"]);
    let restore = r#"{"source_url":"file:///nonexistent"}"#;
    api.call("PUT", "vm.restore", restore)
        .expect_error(500, &["VM is already created"]);
    // Paused.
    api.put("vm.pause").expect(204);
    api.put("vm.pause")
        .expect_error(500, &["could not be paused"]);
    api.put("vm.boot").expect_error(500, &["could not boot"]);
    assert_eq!(api.state(), "Paused");
    assert!(!nowhere.path().exists(), "a refusal writes nothing");
    // And nothing of this has harmed the guest.
    api.put("vm.resume").expect(204);
    vm.expect("heartbeat 20");
    api.put("vm.delete").expect(204);
    api.call("PUT", "vm.restore", restore)
        .expect_error(500, &["/nonexistent"]);
    api.get("vm.info").expect(404);
}

#[test]
fn bad_requests_have_cloud_hypervisors_statuses() {
    let Some(_guest) = kvm_guest() else { return };
    let vm = TestVm::serve(Serial::Tty);
    let api = vm.api();
    api.get("vm.nothing").expect_error(404, &["Not Found"]);
    api.put("vm.info").expect_error(400, &["Bad Request"]);
    api.get("vm.boot").expect_error(400, &["Bad Request"]);
    api.call("PUT", "vm.boot", "{}").expect(400);
    api.put("vm.create").expect(400);
    api.put("vm.snapshot").expect_error(400, &["Bad Request"]);
    api.call("PUT", "vm.create", "{")
        .expect_error(400, &["Failed to deserialize JSON"]);
    let odd = r#"{"source_url":"http://example/"}"#;
    api.call("PUT", "vm.restore", odd)
        .expect_error(400, &["http://example/"]);
    api.get("vmm.ping").expect(200);
}

#[test]
fn configs_that_cannot_boot_are_refused_and_can_be_deleted() {
    let Some(guest) = kvm_guest() else { return };
    let vm = TestVm::serve(Serial::Tty);
    let api = vm.api();
    let config = VmConfig::new(std::path::Path::new("/nonexistent/kernel"), "");
    api.call("PUT", "vm.create", &vm.create_body(&config))
        .expect(204);
    for _ in 0..2 {
        api.put("vm.boot")
            .expect_error(500, &["could not boot", "kernel", "/nonexistent/kernel"]);
        assert_eq!(api.state(), "Created");
    }
    api.put("vm.delete").expect(204);
    let body = vm.create_body(&VmConfig::new(&guest.pvh, "heartbeat=5"));
    api.call("PUT", "vm.create", &body).expect(204);
    api.put("vm.boot").expect(204);
    vm.expect("heartbeat 5");
}

#[test]
fn answers_are_byte_for_byte_what_cloud_hypervisors_client_parses() {
    let Some((vm, api)) = created("heartbeat=5") else {
        return;
    };
    let answer = api.put("vm.boot").expect(204);
    assert_eq!(answer.head, "HTTP/1.1 204 \r\nServer: Dormouse API");
    let ping = api.get("vmm.ping").expect(200);
    let (start, length) = ping.head.rsplit_once(' ').expect("a length is last");
    assert_eq!(
        start,
        "HTTP/1.1 200 \r\nServer: Dormouse API\r\nContent-Type: application/json\r\nContent-Length:"
    );
    assert_eq!(length, ping.body.len().to_string());
    assert_eq!(ping.json()["pid"], vm.pid());
    let info = api.get("vm.info").expect(200);
    assert!(info.body.is_ascii());
    let error = api.put("vm.boot").expect(500);
    assert!(
        error
            .body
            .starts_with(r#"["Error from API","The VM could not boot","#),
        "{error:?}"
    );
}

#[test]
fn guest_that_powers_off_leaves_a_server_that_boots_again() {
    let Some((mut vm, api)) = created("ask") else {
        return;
    };
    for times in 1..4 {
        api.put("vm.boot").expect(204);
        vm.console()
            .wait_for(SOON, |text| {
                (text.matches("ask>").count() == times).then_some(())
            })
            .expect("the guest starts");
        vm.type_in(b"poweroff\n");
        api.wait_for_state("Shutdown");
        api.put("vm.pause").expect_error(500, &["not running"]);
    }
    assert!(vm.is_running());
    api.put("vm.delete").expect(204);
}

#[test]
fn fault_of_a_guest_does_not_end_the_server() {
    for words in ["triple", "jump-mmio"] {
        let Some((mut vm, api)) = created(words) else {
            return;
        };
        for _ in 0..2 {
            api.put("vm.boot").expect(204);
            api.wait_for_state("Shutdown");
        }
        assert!(vm.is_running());
        assert!(vm.stderr().text().contains("vCPU 0"), "the log says why");
        api.put("vm.delete").expect(204);
        api.put("vmm.shutdown").expect(200);
        let exit = vm.wait();
        assert!(exit.status.success() && !exit.stderr.contains("panicked"));
    }
}

#[test]
fn reboot_starts_the_guest_again_also_when_it_is_paused() {
    let Some((vm, api)) = created("heartbeat=5") else {
        return;
    };
    let expect_starts = |times: usize| {
        let starts = vm.console().wait_for(SOON, |text| {
            let last = text.rsplit("DORMOUSE-GUEST hello").next()?;
            (text.matches("DORMOUSE-GUEST hello").count() == times && last.contains("heartbeat 5"))
                .then_some(())
        });
        assert!(starts.is_ok(), "not {times} starts");
    };
    api.put("vm.boot").expect(204);
    expect_starts(1);
    api.put("vm.reboot").expect(204);
    expect_starts(2);
    api.put("vm.pause").expect(204);
    api.put("vm.reboot").expect(204);
    assert_eq!(api.state(), "Running");
    expect_starts(3);
}

#[test]
fn power_button_reaches_the_guest() {
    let Some((mut vm, api)) = created("button ask") else {
        return;
    };
    api.put("vm.boot").expect(204);
    vm.expect("button ready");
    api.put("vm.power-button").expect(204);
    vm.expect("button=pressed");
    vm.type_in(b"poweroff\n");
    api.wait_for_state("Shutdown");
}

#[test]
fn questions_are_answered_at_once_while_a_snapshot_runs() {
    let Some(guest) = kvm_guest() else { return };
    let config = VmConfig::new(&guest.pvh, "fill=256 ask").memory(1 << 30);
    let vm = TestVm::start(&config.serial(Serial::Tty).with_api());
    let filled = vm.console().line(4 * SOON, "ask>");
    assert!(filled.is_ok(), "{filled:?} {}", vm.stderr().text());
    let api = vm.api();
    api.put("vm.pause").expect(204);
    let snapshot = Snapshot::nowhere();
    let worker = std::thread::spawn({
        let (api, path) = (api.clone(), snapshot.path());
        move || api.snapshot(&path)
    });
    let (mut rounds, mut last_done) = (0, 0);
    while !worker.is_finished() {
        let begin = Instant::now();
        api.get("vmm.ping").expect(200);
        let info = api.get("vm.info").expect(200).json();
        assert_eq!(info["state"], "Paused");
        let progress = api.get("vm.progress").expect(200).json();
        assert!(begin.elapsed() < 3 * AT_ONCE, "{:?}", begin.elapsed());
        if progress["operation"] == "snapshot" && progress["phase"] == "memory" {
            let done = progress["bytes_done"].as_u64().expect("a number");
            assert!(done >= last_done && done <= 1 << 30, "{progress}");
            assert_eq!(progress["bytes_total"], 1u64 << 30);
            last_done = done;
            rounds += 1;
        }
    }
    worker.join().expect("the client lives").expect(204);
    assert!(rounds > 0, "no question fell into the snapshot");
    assert_eq!(api.phase(), None);
}

#[test]
fn curl_and_python_are_understood() {
    let Some((vm, api)) = created("heartbeat=5") else {
        return;
    };
    api.put("vm.boot").expect(204);
    let socket = vm.api_socket();
    let socket = socket.to_str().expect("the path is text");
    let curl = |method: &str, command: &str| {
        Command::new("curl")
            .args(["--silent", "--show-error", "--unix-socket", socket])
            .args(["--max-time", "60", "--write-out", "%{http_code}"])
            .args(["--request", method])
            .arg(format!("http://localhost/api/v1/{command}"))
            .output()
    };
    let Ok(first) = curl("PUT", "vm.pause") else {
        return not_run("curl is not installed");
    };
    assert_eq!(String::from_utf8_lossy(&first.stdout), "204", "{first:?}");
    let info = curl("GET", "vm.info").expect("curl runs");
    let text = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(text.contains(r#""state":"Paused""#) && text.ends_with("200"));

    // One connection for several requests, as http.client keeps it.
    let script = "import http.client, json, socket, sys
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
c = Unix('localhost', timeout=60)
for method, command, status in [('PUT', 'vm.resume', 204), ('GET', 'vmm.ping', 200), ('PUT', 'vm.resume', 500)]:
    c.request(method, '/api/v1/' + command)
    answer = c.getresponse()
    body = answer.read()
    assert answer.status == status, (command, answer.status, body)
    if body: json.loads(body)
";
    let python = Command::new("python3")
        .args(["-c", script, socket])
        .output();
    let Ok(python) = python else {
        return not_run("python3 is not installed");
    };
    assert!(python.status.success(), "{python:?}");
    assert_eq!(api.state(), "Running");
}
