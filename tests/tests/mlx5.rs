//! Virtual functions of a real mlx5 network card: passthrough, sleep and wake under traffic.
//!
//! Two guests own one virtual function each. The partner sends data to the sleeper without end, gets it back and compares, one
//! connection after the other; the sleeper is put to sleep in the middle of that. On hosts without such a card these tests do not run.

#[path = "mlx5/host.rs"]
mod host;

use std::time::Duration;

use dormouse_tests::{Snapshot, TestVm};
use host::Host;
use rustix::process::Signal;

const SLEEPER: &str = "10.77.0.1";
const PARTNER: &str = "10.77.0.2";
/// What the sleeper is to remember.
const WORD: &str = "the-word";
/// The partner's TCP doubles its retransmission timer for as long as the sleeper sleeps.
const PATIENCE: Duration = Duration::from_secs(240);
/// A transfer that was under way when the sleeper fell asleep, and others that began after it woke.
const ROUNDS: usize = 3;

/// Two guests that exchange data.
struct Pair {
    host: Host,
    sleeper: TestVm,
    partner: TestVm,
}

impl Pair {
    /// Guests on the first two virtual functions, data under way; none where this host has fewer than `functions`.
    fn start(functions: usize) -> Option<Self> {
        let host = Host::with_functions(functions)?;
        let mut sleeper = host.start(0, SLEEPER);
        let mut partner = host.start(1, PARTNER);
        for (vm, other) in [(&mut sleeper, PARTNER), (&mut partner, SLEEPER)] {
            expect_ready(vm, 1);
            reach(vm, other, 1);
        }
        say(&mut partner, &format!("exchange {SLEEPER}"));
        say(&mut sleeper, &format!("remember {WORD}"));
        sleeper.expect("MLX5 remembers");
        let pair = Self {
            host,
            sleeper,
            partner,
        };
        pair.expect_traffic();
        Some(pair)
    }

    /// Waits for data that went there and back after this call.
    fn expect_traffic(&self) {
        let before = rounds(&self.partner.console().text());
        wait(&self.partner, |text| rounds(text) >= before + ROUNDS);
        for vm in [&self.sleeper, &self.partner] {
            let text = vm.console().text();
            assert!(!text.contains("MLX5 FAIL"), "{text}");
        }
    }

    /// Puts the sleeper to sleep, ends its process without warning, and wakes it on virtual function `index`.
    fn sleep_and_wake(&mut self, index: usize) {
        let snapshot = Snapshot::take(&self.sleeper);
        let before = rounds(&self.partner.console().text());
        // The function must be free before it is opened again.
        self.sleeper.signal(Signal::KILL);
        self.sleeper.wait();
        // The last echo may have been on its way.
        let asleep = rounds(&self.partner.console().text());
        assert!(asleep <= before + 1, "{asleep} rounds, {before} before");
        self.sleeper = self.host.wake(&snapshot.path(), index);
        self.expect_traffic();
        self.expect_same_guest();
    }

    /// The sleeper's memory is what it was, and interrupts arrive.
    fn expect_same_guest(&mut self) {
        let (word, before) = self.recall(1);
        assert_eq!(word, WORD);
        self.expect_traffic();
        let (_, after) = self.recall(2);
        assert!(after > before, "no interrupts: {before}, then {after}");
    }

    /// What the sleeper answers when it is asked for the `times`-th time since it woke: the word, and its card's interrupts.
    fn recall(&mut self, times: usize) -> (String, u64) {
        say(&mut self.sleeper, "recall");
        let text = wait(&self.sleeper, |text| {
            lines(text, "MLX5 recalls ").count() >= times
        });
        let answer = lines(&text, "MLX5 recalls ").nth(times - 1);
        let (word, interrupts) = answer
            .and_then(|answer| answer.split_once(" interrupts="))
            .expect("the guest names both");
        let interrupts = interrupts.parse().expect("a number");
        (word.to_owned(), interrupts)
    }
}

fn say(vm: &mut TestVm, words: &str) {
    vm.type_in(format!("{words}\n").as_bytes());
}

/// Waits until the guest's output is as wanted, and returns it.
fn wait(vm: &TestVm, wanted: impl Fn(&str) -> bool) -> String {
    let text = vm
        .console()
        .wait_for(PATIENCE, |text| wanted(text).then(|| text.to_owned()));
    text.unwrap_or_else(|text| panic!("--- guest:\n{text}\n--- stderr:\n{}", vm.stderr().text()))
}

/// What follows `start` on the whole lines that begin so.
fn lines<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    text.split_inclusive('\n')
        .filter_map(move |line| line.strip_suffix('\n')?.strip_prefix(start))
}

/// How often data went there and back.
fn rounds(text: &str) -> usize {
    lines(text, "MLX5 round ").count()
}

/// Waits until the guest has started `times` times, with the card's own driver.
fn expect_ready(vm: &TestVm, times: usize) {
    let text = wait(vm, |text| lines(text, "MLX5 READY ").count() >= times);
    let greeting = lines(&text, "MLX5 READY ").nth(times - 1);
    assert!(
        greeting.is_some_and(|greeting| greeting.ends_with("driver=mlx5_core")),
        "{text}"
    );
}

/// Waits until the guest reaches another for the `times`-th time.
fn reach(vm: &mut TestVm, other: &str, times: usize) {
    say(vm, &format!("reach {other}"));
    wait(vm, |text| lines(text, "MLX5 reaches ").count() >= times);
}

#[test]
fn guests_exchange_data_before_and_after_a_reboot() {
    let Some(mut pair) = Pair::start(2) else {
        return;
    };
    // The transfer that the reboot interrupts is broken off by the sleeper's TCP, and begun anew.
    say(&mut pair.sleeper, "reboot");
    expect_ready(&pair.sleeper, 2);
    reach(&mut pair.sleeper, PARTNER, 2);
    pair.expect_traffic();
    for vm in [&mut pair.sleeper, &mut pair.partner] {
        say(vm, "off");
        vm.wait_powered_off();
    }
}

#[test]
fn a_guest_sleeps_and_wakes_under_traffic() {
    if let Some(mut pair) = Pair::start(2) {
        pair.sleep_and_wake(0);
    }
}

#[test]
fn a_paused_guest_goes_on_after_its_snapshot() {
    if let Some(pair) = Pair::start(2) {
        let _snapshot = Snapshot::take(&pair.sleeper);
        let resumed = pair.sleeper.ctl(&["resume"]);
        assert!(resumed.status.success(), "{resumed:?}");
        pair.expect_traffic();
    }
}

#[test]
fn a_guest_wakes_on_another_virtual_function() {
    if let Some(mut pair) = Pair::start(3) {
        pair.sleep_and_wake(2);
        pair.sleep_and_wake(0);
    }
}

#[test]
fn twenty_cycles_in_a_row() {
    let Some(mut pair) = Pair::start(2) else {
        return;
    };
    // Those that the partner does not have.
    let free: Vec<_> = (0..pair.host.count()).filter(|index| *index != 1).collect();
    for cycle in 0..20 {
        println!("cycle {cycle}");
        pair.sleep_and_wake(free[cycle % free.len()]);
    }
}
