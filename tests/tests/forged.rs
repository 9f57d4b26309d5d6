//! Snapshots whose checksums are right and whose content is not for this host or this Dormouse: refused with the reason,
//! never a crash.

use std::fs;

use dormouse_tests::not_run::not_run;
use dormouse_tests::snapshot::Parts;
use dormouse_tests::{Serial, Snapshot, TestVm, VmConfig, kvm_guest};
use serde_json::{Value, json};

fn snapshot() -> Option<Snapshot> {
    let guest = kvm_guest()?;
    let config = VmConfig::new(&guest.pvh, "fill=2 ask").memory(16 << 20);
    let vm = TestVm::start(&config.cpus(2).serial(Serial::Tty).with_api());
    vm.expect("ask>");
    Some(Snapshot::take(&vm))
}

/// Every restore of the forged snapshot is refused with an error that names `nouns`.
fn refuses(original: &Snapshot, nouns: &[&str], change: impl FnOnce(&mut Parts)) {
    let forged = original.copy();
    forged.forge(change);
    for mode in [&[][..], &["--verify"]] {
        let exit = forged.refused_restore(mode);
        eprintln!("{}", exit.stderr.trim_end());
        exit.assert_failure(nouns);
    }
}

#[test]
fn forging_nothing_leaves_a_snapshot_that_wakes() {
    let Some(snapshot) = snapshot() else { return };
    snapshot.forge(|_| ());
    assert!(snapshot.verify().status.success());
    let mut vm = snapshot.wake(&["--verify"]);
    vm.type_in(b"verify=2\n");
    vm.expect("verify=ok");
}

#[test]
fn cpu_with_other_features() {
    let Some(snapshot) = snapshot() else { return };
    refuses(&snapshot, &["CPU lacks", "feature"], |parts| {
        let leaves = parts.state("kvm-vcpu")["cpuid"].as_array_mut().unwrap();
        // As KVM has them in memory: function, index and flags, then EAX, EBX, ECX and EDX, four bytes each.
        let function_7 = json!([7, 0, 0, 0, 0, 0, 0, 0]);
        let leaf = leaves
            .iter_mut()
            .find(|leaf| leaf.as_array().unwrap()[..8] == function_7.as_array().unwrap()[..])
            .expect("a leaf 7");
        for byte in 16..28 {
            leaf[byte] = json!(0xff);
        }
    });
}

#[test]
fn counter_of_another_frequency() {
    let Some(snapshot) = snapshot() else { return };
    let mut known = false;
    snapshot
        .copy()
        .forge(|parts| known = parts.state("kvm-vcpu")["tsc_khz"].is_u64());
    if !known {
        return not_run("this KVM does not tell the frequency of a vCPU's counter");
    }
    // No host counts so slowly, and none can scale its counter that far.
    refuses(&snapshot, &["vCPU 0", "TSC frequency"], |parts| {
        parts.state("kvm-vcpu")["tsc_khz"] = json!(1);
    });
}

#[test]
fn model_specific_register_that_the_host_lacks() {
    let Some(snapshot) = snapshot() else { return };
    let ignores = fs::read_to_string("/sys/module/kvm/parameters/ignore_msrs");
    if ignores.is_ok_and(|value| value.starts_with('Y')) {
        return not_run("this host's KVM ignores registers that it does not know (ignore_msrs)");
    }
    // As KVM has it in memory: index, nothing, and the value, which is what makes it matter.
    let entry = |index: u32| [index, 0, 0x1234, 0].map(u32::to_le_bytes).concat();
    let refused = ["vCPU 0", "MSR 0x4fffff00", "0x1234"];
    for first in [false, true] {
        refuses(&snapshot, &refused, |parts| {
            let registers = parts.state("kvm-vcpu")["msrs"].as_array_mut().unwrap();
            let place = if first { 0 } else { registers.len() };
            registers.insert(place, json!(entry(0x4fff_ff00)));
        });
    }
}

#[test]
fn memory_of_another_size() {
    let Some(snapshot) = snapshot() else { return };
    for size in [8u64 << 20, 32 << 20, 8 << 30] {
        refuses(&snapshot, &["memory.bin", "memory.size"], |parts| {
            parts.manifest["config"]["memory"]["size"] = json!(size);
        });
    }
}

#[test]
fn other_number_of_cpus() {
    let Some(snapshot) = snapshot() else { return };
    for count in [1, 3] {
        refuses(&snapshot, &["vCPUs"], |parts| {
            parts.manifest["config"]["cpus"] = json!({ "boot_vcpus": count, "max_vcpus": count });
        });
    }
}

#[test]
fn device_that_the_snapshot_has_no_state_of() {
    let Some(snapshot) = snapshot() else { return };
    refuses(&snapshot, &["vfio0"], |parts| {
        parts.manifest["config"]["devices"] =
            json!([{ "id": "vfio0", "path": "/sys/bus/pci/devices/0000:00:1f.7" }]);
    });
}

#[test]
fn sections_of_another_version_kind_or_number() {
    let Some(snapshot) = snapshot() else { return };
    let count = |parts: &Parts| parts.states.len();
    let mut sections = 0;
    snapshot.copy().forge(|parts| sections = count(parts));
    for index in 0..sections {
        refuses(&snapshot, &["version 99"], |parts| {
            parts.manifest["sections"][index]["version"] = json!(99);
        });
        // A vCPU less is told as such.
        refuses(&snapshot, &["the snapshot"], |parts| {
            parts.manifest["sections"][index]["kind"] = json!("toaster");
        });
        refuses(&snapshot, &["state of"], |parts| {
            parts.states[index] = json!({ "other": 1 });
        });
        refuses(&snapshot, &[], |parts| {
            let sections = parts.manifest["sections"].as_array_mut().unwrap();
            sections.remove(index);
            parts.states.remove(index);
        });
    }
    refuses(&snapshot, &["toaster"], |parts| {
        let mut section = parts.manifest["sections"][0].clone();
        section["kind"] = json!("toaster");
        parts.manifest["sections"]
            .as_array_mut()
            .unwrap()
            .push(section);
        parts.states.push(json!({}));
    });
}

/// Replaces every number in `value`, one after the other, and calls `check` with each variant.
fn each_number(value: &Value, path: &mut String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(path.clone()),
        Value::Array(items) => {
            // The first few stand for all.
            for (index, item) in items.iter().enumerate().take(3) {
                each_child(item, &index.to_string(), path, found);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                each_child(field, name, path, found);
            }
        }
        _ => {}
    }
}

fn each_child(value: &Value, name: &str, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    path.push('/');
    path.push_str(name);
    each_number(value, path, found);
    path.truncate(length);
}

#[test]
fn absurd_numbers_in_the_state_crash_nothing() {
    let Some(snapshot) = snapshot() else { return };
    let forged = snapshot.copy();
    let mut places = Vec::new();
    forged.forge(|parts| {
        for (index, state) in parts.states.iter().enumerate() {
            let mut found = Vec::new();
            each_number(state, &mut String::new(), &mut found);
            places.extend(found.into_iter().map(|path| (index, path)));
        }
    });
    // Of every field, in turn one of the values; the VM is woken and left paused.
    let values = [json!(u64::MAX), json!(255), json!(1 << 31), json!(-1)];
    let step = places.len().div_ceil(120);
    for (number, (index, path)) in places.into_iter().enumerate().step_by(step) {
        let original = {
            let mut original = Value::Null;
            forged.forge(|parts| {
                let place = parts.states[index].pointer_mut(&path).unwrap();
                original = place.take();
                *place = values[number / step % values.len()].clone();
            });
            original
        };
        let mut vm = TestVm::restore(&forged.path(), &[]);
        let ended = loop {
            if !vm.is_running() {
                break true;
            }
            let info = vm.api().try_call("GET", "vm.info", "");
            if info.is_ok_and(|info| info.status == 200) {
                break false;
            }
        };
        if ended {
            vm.wait().assert_failure(&[]);
        }
        assert!(!vm.stderr().text().contains("panicked"), "{index}{path}");
        forged.forge(|parts| *parts.states[index].pointer_mut(&path).unwrap() = original);
    }
}
