//! A guest that wakes finds everything as it was when it fell asleep, and no time gone.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_tests::binary::dormouse;
use dormouse_tests::exit::ended;
use dormouse_tests::vm::SOON;
use dormouse_tests::{Serial, Snapshot, TestVm, VmConfig, kvm_guest};

/// How long the guests sleep: more than a busy host takes from one heartbeat to the next.
const SLEEP: Duration = Duration::from_secs(2);
/// kvm-clock tells with this flag that the guest was paused.
const GUEST_STOPPED: u64 = 2;

/// What the guest printed at one beat.
#[derive(Debug)]
struct Beat {
    number: u64,
    clock_ns: u64,
    flags: u64,
    tsc: u64,
    ap_work: Option<u64>,
}

impl Beat {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("heartbeat ")?.split(' ');
        let number = words.next()?.parse().ok()?;
        let mut field = |name: &str, radix| {
            let value = words.next()?.strip_prefix(name)?.strip_prefix('=')?;
            u64::from_str_radix(value, radix).ok()
        };
        Some(Self {
            number,
            clock_ns: field("clock", 10)?,
            flags: field("flags", 16)?,
            tsc: field("tsc", 10)?,
            ap_work: field("ap", 10),
        })
    }
}

fn beats(text: &str) -> Vec<Beat> {
    text.lines().filter_map(Beat::parse).collect()
}

/// Starts a VM that can be woken on standard input and output.
fn start(words: &str, adjust: impl FnOnce(VmConfig) -> VmConfig) -> Option<TestVm> {
    let guest = kvm_guest()?;
    let config = VmConfig::new(&guest.pvh, words).serial(Serial::Tty);
    Some(TestVm::start(&adjust(config).with_api()))
}

/// Ends the VM where it is and returns all that its guest printed.
fn kill(vm: TestVm) -> String {
    let console = vm.console().clone();
    drop(vm);
    console.wait_for_end(SOON);
    console.text()
}

/// `asleep` ends where `awake` begins, at any byte.
fn check_beats(asleep: &str, awake: &str) {
    let before = beats(&asleep[..asleep.rfind('\n').unwrap_or(0) + 1]).len();
    let all = beats(&format!("{asleep}{awake}"));
    assert!(
        before > 0 && all.len() > before + 3,
        "{before} of {}",
        all.len()
    );
    for pair in all.windows(2) {
        assert_eq!(pair[1].number, pair[0].number + 1, "{pair:?}");
        assert!(pair[1].clock_ns > pair[0].clock_ns, "{pair:?}");
        assert!(pair[1].tsc > pair[0].tsc, "{pair:?}");
        assert!(pair[1].ap_work >= pair[0].ap_work, "{pair:?}");
    }
    let told: Vec<u64> = all
        .iter()
        .filter(|beat| beat.flags & GUEST_STOPPED != 0)
        .map(|beat| beat.number)
        .collect();
    // The beat on the seam may have read its clock before the guest fell asleep.
    let seam = &all[before - 1..before + 2];
    assert!(
        told.len() == 1 && told[0] > seam[0].number && told[0] <= seam[2].number,
        "the guest is told once that it slept, around {seam:?}: {told:?}"
    );
    let gap = Duration::from_nanos(seam[2].clock_ns - seam[0].clock_ns);
    assert!(gap < SLEEP, "the clock has slept too: {seam:?}");
    let last = all.last().expect("there are beats");
    if last.ap_work.is_some() {
        assert!(last.ap_work > seam[0].ap_work, "the other CPUs go on");
    }
}

fn sleeps_and_wakes(cpus: u32, mode: &[&str]) {
    let words = "clock smp-work fill=32 heartbeat=5 verify=32 interrupts ask";
    let Some(vm) = start(words, |config| config.cpus(cpus)) else {
        return;
    };
    vm.expect("heartbeat 20 ");
    let snapshot = Snapshot::take(&vm);
    let asleep_since = Instant::now();
    let asleep = kill(vm);
    thread::sleep(SLEEP.saturating_sub(asleep_since.elapsed()));
    let mut vm = snapshot.wake(mode);
    let next = beats(&asleep).last().expect("it has beaten").number + 20;
    vm.expect(&format!("heartbeat {next} "));
    vm.type_in(b"q");
    vm.expect("verify=ok");
    vm.expect("serial-irq thre=ok rx=ok");
    vm.expect("ask>");
    check_beats(&asleep, &vm.console().text());
    vm.type_in(b"poweroff\n");
    vm.wait_powered_off();
}

#[test]
fn one_cpu_on_demand() {
    sleeps_and_wakes(1, &[]);
}

#[test]
fn two_cpus_eagerly() {
    sleeps_and_wakes(2, &["--eager"]);
}

#[test]
fn eight_cpus_verified() {
    sleeps_and_wakes(8, &["--verify"]);
}

#[test]
fn resume_after_a_snapshot_goes_on_in_the_same_process() {
    let words = "clock smp-work fill=8 heartbeat=5 verify=8 ask";
    let Some(mut vm) = start(words, |config| config.cpus(2)) else {
        return;
    };
    vm.expect("heartbeat 20 ");
    let _snapshot = Snapshot::take(&vm);
    let asleep = vm.console().text();
    thread::sleep(SLEEP);
    vm.api().put("vm.resume").expect(204);
    let next = beats(&asleep).last().expect("it has beaten").number + 20;
    vm.expect(&format!("heartbeat {next} "));
    vm.type_in(b"q");
    vm.expect("verify=ok");
    vm.expect("ask>");
    let all = vm.console().text();
    // What was still in the pipe when the VM had stopped belongs to the time before.
    let seam = beats(&all)
        .iter()
        .position(|beat| beat.flags & GUEST_STOPPED != 0)
        .expect("the guest is told that it slept");
    let start = all
        .match_indices("heartbeat ")
        .nth(seam)
        .expect("the beat is there")
        .0;
    let (asleep, awake) = all.split_at(start);
    check_beats(asleep, awake);
    vm.type_in(b"poweroff\n");
    vm.wait_powered_off();
}

#[test]
fn pending_serial_input_is_not_lost() {
    let Some(mut vm) = start("fifo ask", |config| config) else {
        return;
    };
    vm.expect("fifo ready");
    vm.type_in(b"kept");
    vm.expect("fifo pending");
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let mut vm = snapshot.wake(&[]);
    vm.api().wait_for_state("Running");
    vm.api().put("vm.power-button").expect(204);
    vm.expect("fifo=kept");
    vm.type_in(b"interrupts\n");
    vm.expect("serial-irq thre=ok rx=ok");
    vm.type_in(b"poweroff\n");
    vm.wait_powered_off();
}

#[test]
fn pressed_power_button_is_not_lost() {
    let Some(vm) = start("button ask", |config| config) else {
        return;
    };
    vm.expect("button ready");
    vm.api().put("vm.pause").expect(204);
    vm.api().put("vm.power-button").expect(204);
    let snapshot = Snapshot::take_paused(&vm);
    drop(vm);
    snapshot.wake(&[]).expect("button=pressed");
}

#[test]
fn guest_waiting_for_input_wakes_by_its_interrupt() {
    let Some(vm) = start("echo ask", |config| config) else {
        return;
    };
    vm.expect("echo ready");
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    let mut vm = snapshot.wake(&["--eager"]);
    let text: String = (0..100).map(|n| format!("{n:07}\n")).collect();
    vm.type_in(text.as_bytes());
    vm.type_in(b"\x04");
    vm.expect("echo=done bytes=800");
    assert!(vm.console().text().contains(&text));
}

#[test]
fn more_memory_at_once_than_the_host_has_is_refused_before_anything_is_built() {
    let Some(guest) = kvm_guest() else { return };
    // All of the host's, of which never all is available. Little of it is touched.
    let mib = fs::read_to_string("/proc/meminfo")
        .unwrap()
        .lines()
        .filter_map(|line| {
            line.strip_prefix("MemTotal:")
                .or(line.strip_prefix("SwapTotal:"))
        })
        .map(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10)
        .sum::<u64>();
    let config = VmConfig::new(&guest.pvh, "fill=2 ask").memory(mib << 20);
    let vm = TestVm::start(&config.serial(Serial::Tty).with_api());
    vm.expect("ask>");
    let snapshot = Snapshot::take(&vm);
    drop(vm);
    // The limit is for the host's sake, should it not be refused.
    let mut restore = Command::new("prlimit");
    restore.arg("--as=4294967296").arg(dormouse());
    restore.args(["restore", "--resume", "--prefault", "--snapshot"]);
    let refused = ended(restore.arg(snapshot.path()), SOON);
    refused.assert_failure(&[&format!("{mib} MiB of RAM"), "available"]);
    let mut vm = snapshot.wake(&[]);
    vm.type_in(b"verify=2\n");
    vm.expect("verify=ok");
}
