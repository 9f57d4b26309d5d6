//! Manifests that somebody made up: with right checksums, so that only what they say can be wrong.

use std::path::Path;

use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_oneof, proptest,
};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::{small, snapshot};
use crate::memory::{Ram, RestoreMode, Unobserved};
use crate::snapshot::checksum::Checksum;
use crate::snapshot::format::{self, ManifestError};
use crate::snapshot::{ReadError, Snapshot};

/// The manifest proper, as a tree.
fn body(dir: &Path) -> Value {
    let bytes = std::fs::read(dir.join("manifest.json")).unwrap();
    let whole: Value = serde_json::from_slice(&bytes).unwrap();
    whole["manifest"].clone()
}

/// Frames `body` with the checksum that it has.
fn framed(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{{\n\"dormouse_snapshot\": 1,\n\"checksum\": \"{}\",\n\"manifest\": ",
        Checksum::of(body)
    );
    [head.as_bytes(), body, b"\n}\n"].concat()
}

fn open_with(dir: &Path, body: &Value) -> Result<Snapshot, ReadError> {
    let bytes = framed(&serde_json::to_vec(body).unwrap());
    std::fs::write(dir.join("manifest.json"), bytes).unwrap();
    Snapshot::open(dir)
}

#[test]
fn a_newer_format_is_refused_with_advice() {
    let dir = snapshot();
    let path = dir.path().join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (written, found) in [("2", 2), ("4294967295", u32::MAX)] {
        let newer = text.replacen("snapshot\": 1", &format!("snapshot\": {written}"), 1);
        let error = format::parse(newer.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ManifestError::Version { found: f } if f == found),
            "{error}"
        );
    }
    for odd in ["01", "", "1.0", "99999999999"] {
        let newer = text.replacen("snapshot\": 1", &format!("snapshot\": {odd}"), 1);
        let error = format::parse(newer.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ManifestError::Frame { .. }),
            "{odd}: {error}"
        );
    }
}

#[test]
fn what_cannot_be_is_refused_by_field() {
    let dir = snapshot();
    let good = body(dir.path());
    assert!(open_with(dir.path(), &good).is_ok());
    let cases = [
        ("/arch", json!("riscv64"), "arch"),
        ("/dormouse_version", json!("\u{1b}[2J"), "dormouse_version"),
        (
            "/sections/0/file",
            json!("../state.json"),
            "sections[0].file",
        ),
        ("/sections/0/file", json!("/etc/passwd"), "sections[0].file"),
        ("/sections/0/kind", json!("a/b"), "sections[0].kind"),
        ("/sections/1/instance", json!(""), "sections[1].kind"),
        (
            "/sections/1/instance",
            json!("../x"),
            "sections[1].instance",
        ),
        (
            "/sections/2/file",
            json!("vfio-vfio0.bin"),
            "sections[2].file",
        ),
        ("/sections/0/length", json!(u64::MAX), "sections[0].length"),
        ("/memory/file", json!("state.json"), "memory.file"),
        ("/memory/length", json!(0), "memory.length"),
        ("/memory/chunk_bytes", json!(4096), "memory.chunk_bytes"),
        ("/memory/regions", json!([]), "memory.regions"),
        (
            "/memory/regions/0/length",
            json!(u64::MAX - 4095),
            "memory.regions[0].length",
        ),
        (
            "/memory/regions/0/length",
            json!(4097),
            "memory.regions[0].length",
        ),
        (
            "/memory/regions/0/guest",
            json!(u64::MAX - 4095),
            "memory.regions[0].guest",
        ),
        (
            "/memory/regions/0/file_offset",
            json!(4096),
            "memory.regions[0].file_offset",
        ),
        (
            "/memory/checksums/0/first_chunk",
            json!(u64::MAX),
            "memory.checksums[0].first_chunk",
        ),
        (
            "/memory/checksums/0/sums",
            json!(""),
            "memory.checksums[0].first_chunk",
        ),
        (
            "/timeline/phases/0/name",
            json!("\n"),
            "timeline.phases[0].name",
        ),
    ];
    for (pointer, value, field) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        let error = open_with(dir.path(), &bad).unwrap_err();
        let ReadError::Manifest {
            source: ManifestError::Field { field: named, .. },
            ..
        } = &error
        else {
            panic!("{pointer}: {error:?}");
        };
        assert_eq!(named, field, "{pointer}");
    }
}

#[test]
fn unknown_members_and_bad_checksums_are_refused() {
    let dir = snapshot();
    let good = body(dir.path());
    for pointer in [
        "",
        "/sections/0",
        "/memory",
        "/memory/regions/0",
        "/memory/checksums/0",
    ] {
        let mut bad = good.clone();
        bad.pointer_mut(pointer).unwrap()["extra"] = json!(1);
        let error = open_with(dir.path(), &bad).unwrap_err();
        assert!(
            matches!(
                &error,
                ReadError::Manifest {
                    source: ManifestError::Parse(_),
                    ..
                }
            ),
            "{pointer}"
        );
    }
    let mut bad = good.clone();
    bad["config"]["memori"] = json!({});
    let error = open_with(dir.path(), &bad).unwrap_err();
    assert!(
        matches!(
            &error,
            ReadError::Manifest {
                source: ManifestError::Config(_),
                ..
            }
        ),
        "{error:?}"
    );
    for sums in [
        "0",
        "0123456789ABCDEF",
        "0123456789abcdef0",
        "0123456789abcde\u{e9}",
    ] {
        let mut bad = good.clone();
        bad["memory"]["checksums"][0]["sums"] = json!(sums);
        let error = open_with(dir.path(), &bad).unwrap_err();
        assert!(
            matches!(
                &error,
                ReadError::Manifest {
                    source: ManifestError::Parse(_),
                    ..
                }
            ),
            "{sums}"
        );
    }
}

#[test]
fn two_regions_may_not_overlap() {
    let dir = snapshot();
    let mut bad = body(dir.path());
    let second = json!({"guest": 8 << 20, "length": 4096, "file_offset": 10 << 20});
    bad["memory"]["regions"]
        .as_array_mut()
        .unwrap()
        .push(second);
    let error = open_with(dir.path(), &bad).unwrap_err();
    let named = "memory.regions[1].guest";
    assert!(
        matches!(&error, ReadError::Manifest { source: ManifestError::Field { field, .. }, .. } if field == named),
        "{error:?}"
    );
}

/// All places of a tree.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                pointers(member, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointers(item, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..64, -2i64..=2).prop_map(|(bit, by)| json!((1u64 << bit).wrapping_add_signed(by))),
        (0u64..16).prop_map(|pages| json!(pages << 20)),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9/._-]{0,20}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ]
}

#[test]
fn mutated_manifests_never_panic() {
    let dir = snapshot();
    let good = body(dir.path());
    let change = (any::<prop::sample::Index>(), odd_value());
    let changes = prop::collection::vec(change, 1..4);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&changes, |changes| {
        let mut value = good.clone();
        for (place, new) in changes {
            let mut places = Vec::new();
            pointers(&value, "", &mut places);
            let place: &String = place.get(&places);
            *value.pointer_mut(place).unwrap() = new;
        }
        if let Ok(opened) = open_with(dir.path(), &value) {
            let _ = opened.verify_all(&Unobserved);
            let _ = Ram::restore(&small(), &opened, RestoreMode::Eager, &Unobserved);
            let _ = Ram::restore(&small(), &opened, RestoreMode::OnDemand, &Unobserved);
        }
        Ok(())
    });
    outcome.unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(format::parse(&bytes).is_err());
        prop_assert!(format::parse(&framed(&bytes)).is_err());
    }
}
