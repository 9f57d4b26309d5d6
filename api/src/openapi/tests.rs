//! Makes the OpenAPI document from the routes and types, and compares it with the one that is served.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use hyper::Method;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::DOCUMENT;
use crate::config::VmConfig;
use crate::request::{DevicePath, MemoryRestoreMode, RestoreRequest, SnapshotRequest};
use crate::response::{
    Counters, DeviceCondition, DeviceNode, DeviceProgress, DeviceState, MigrationFlag,
    MigrationState, Operation, PciBarType, Phase, PingInfo, Progress, Resource, Timeline, VmInfo,
    VmState,
};
use crate::server::route::{API_PREFIX, ROUTES, Target};

/// Summary, body schema and answer schema of a command.
type Described = (&'static str, Option<Schema>, Option<Schema>);

fn describe(command: &str, schemas: &mut SchemaGenerator) -> Described {
    fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Option<Schema> {
        Some(schemas.subschema_for::<T>())
    }
    match command {
        "openapi.json" => ("This document", None, Some(Schema::default())),
        "vmm.ping" => ("Say which VMM answers", None, of::<PingInfo>(schemas)),
        "vmm.shutdown" => ("End the VMM", None, None),
        "vm.create" => ("Store the config of a VM", of::<VmConfig>(schemas), None),
        "vm.boot" => ("Boot the stored config", None, None),
        "vm.info" => ("Describe the VM", None, of::<VmInfo>(schemas)),
        "vm.counters" => (
            "Read the counters of the devices",
            None,
            of::<Counters>(schemas),
        ),
        "vm.pause" => ("Stop the vCPUs and devices", None, None),
        "vm.resume" => ("Let a paused VM run on", None, None),
        "vm.snapshot" => (
            "Write a paused VM to a directory",
            of::<SnapshotRequest>(schemas),
            None,
        ),
        "vm.restore" => (
            "Make the VM from a snapshot",
            of::<RestoreRequest>(schemas),
            None,
        ),
        "vm.shutdown" => ("Stop the VM and keep its config", None, None),
        "vm.delete" => ("Stop the VM and forget its config", None, None),
        "vm.reboot" => ("Stop the VM and boot it again", None, None),
        "vm.power-button" => ("Press the power button of the guest", None, None),
        "vm.progress" => (
            "Report how far a long action is",
            None,
            of::<Progress>(schemas),
        ),
        "vm.cancel" => ("Cancel the long action under way", None, None),
        other => panic!("describe {other} for the OpenAPI document"),
    }
}

fn generate() -> Value {
    let mut schemas = SchemaSettings::openapi3().into_generator();
    let mut paths = Map::new();
    for route in &ROUTES {
        let (summary, body, answer) = describe(route.command, &mut schemas);
        assert_eq!(
            body.is_some(),
            matches!(route.target, Target::Body(_)),
            "{}",
            route.command
        );
        let content = |schema: Schema| json!({"application/json": {"schema": schema}});
        let status = if answer.is_some() || route.command == "vmm.shutdown" {
            "200"
        } else {
            "204"
        };
        let mut success = json!({"description": "Done"});
        if let Some(answer) = answer {
            success["content"] = content(answer);
        }
        let mut operation = json!({
            "operationId": route.command,
            "summary": summary,
            "responses": {
                status: success,
                "default": {
                    "description": "Refused or failed: what was attempted, the root cause last",
                    "content": content(schemas.subschema_for::<Vec<String>>())
                }
            }
        });
        if let Some(body) = body {
            operation["requestBody"] = json!({"required": true, "content": content(body)});
        }
        paths.insert(
            format!("/{}", route.command),
            json!({route.method.as_str().to_lowercase(): operation}),
        );
    }
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Dormouse API",
            "description": "Cloud Hypervisor's API, as far as Dormouse implements it",
            "license": {"name": "Apache-2.0 OR BSD-3-Clause"},
            "version": "1"
        },
        "servers": [{"url": format!("http://localhost{}", API_PREFIX.trim_end_matches('/'))}],
        "paths": paths,
        "components": {"schemas": schemas.take_definitions(true)}
    })
}

fn served() -> Value {
    serde_json::from_str(DOCUMENT).expect("the document is JSON")
}

#[test]
fn document_is_what_the_routes_and_types_say() {
    let generated = generate();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/openapi.json");
        let text = serde_json::to_string_pretty(&generated).expect("it can be written");
        std::fs::write(path, text + "\n").expect("the document is written");
        return;
    }
    assert_eq!(
        served(),
        generated,
        "run this test with UPDATE_OPENAPI=1 and commit openapi.json"
    );
}

#[test]
fn document_lists_exactly_the_routes() {
    let document = served();
    let listed: BTreeSet<_> = document["paths"]
        .as_object()
        .expect("an object")
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("an object").keys();
            methods.map(move |method| {
                (
                    path.trim_start_matches('/').to_owned(),
                    method.to_uppercase(),
                )
            })
        })
        .collect();
    let routes = ROUTES
        .iter()
        .map(|route| (route.command.to_owned(), route.method.to_string()))
        .collect();
    assert_eq!(listed, routes);
    assert!(
        ROUTES
            .iter()
            .all(|route| matches!(route.method, Method::GET | Method::PUT))
    );
}

/// Asserts that the schema called `name` knows each member of `value`, and demands none that `value` lacks.
fn assert_described(name: &str, value: &Value) {
    let document = served();
    let schemas = &document["components"]["schemas"];
    follow(schemas, &schemas[name], value, name);
}

fn follow(schemas: &Value, schema: &Value, value: &Value, path: &str) {
    let mut candidates = vec![schema];
    let mut properties = Map::new();
    while let Some(next) = candidates.pop() {
        if let Some(name) = next["$ref"]
            .as_str()
            .and_then(|to| to.strip_prefix("#/components/schemas/"))
        {
            candidates.push(&schemas[name]);
        }
        for list in ["allOf", "anyOf", "oneOf"] {
            candidates.extend(next[list].as_array().into_iter().flatten());
        }
        properties.extend(next["properties"].as_object().cloned().unwrap_or_default());
        if let Some(items) = next.get("items") {
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                follow(schemas, items, item, &format!("{path}[{index}]"));
            }
        }
        let required = next["required"].as_array().into_iter().flatten();
        for field in required
            .filter_map(Value::as_str)
            .filter(|_| value.is_object() && next.get("oneOf").is_none())
        {
            assert!(value.get(field).is_some(), "{path}.{field} is required");
        }
        if let Some(any) = next
            .get("additionalProperties")
            .filter(|any| any.is_object())
        {
            for (field, member) in value.as_object().into_iter().flatten() {
                follow(schemas, any, member, &format!("{path}.{field}"));
            }
            return;
        }
    }
    for (field, member) in value.as_object().into_iter().flatten() {
        let described = properties.get(field);
        assert!(described.is_some(), "{path}.{field} is not in the document");
        described
            .into_iter()
            .for_each(|schema| follow(schemas, schema, member, &format!("{path}.{field}")));
    }
}

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, example: &T) {
    let value = serde_json::to_value(example).expect("it can be written");
    assert_described(name, &value);
    assert_eq!(
        &serde_json::from_value::<T>(value).expect("it reads back"),
        example
    );
}

#[test]
fn examples_of_requests_fit_the_document() {
    let config = json!({
        "cpus": {
            "boot_vcpus": 1, "max_vcpus": 2, "affinity": [{"vcpu": 0, "host_cpus": [1]}],
            "topology": {"threads_per_core": 2, "cores_per_die": 1, "dies_per_package": 1, "packages": 1}
        },
        "payload": {"kernel": "/k", "cmdline": "c", "initramfs": "/i"},
        "serial": {"mode": "File", "file": "/f"},
        "devices": [{"id": "v", "path": "/d", "snapshot": "discard-state", "x_exclude_mmap_bars": [1]}],
        "platform": {"iommufd": true}
    });
    check(
        "VmConfig",
        &VmConfig::from_file_bytes(config.to_string().as_bytes()).expect("it can be read"),
    );
    check(
        "SnapshotRequest",
        &SnapshotRequest {
            destination_url: "file:///s".to_owned(),
        },
    );
    let restore = RestoreRequest {
        source_url: "file:///s".to_owned(),
        prefault: true,
        memory_restore_mode: MemoryRestoreMode::OnDemand,
        vfio_fds: Some(Vec::new()),
        device_paths: vec![DevicePath {
            id: "v".to_owned(),
            path: PathBuf::from("/d"),
        }],
        verify: true,
        ..RestoreRequest::default()
    };
    check("RestoreRequest", &restore);
}

#[test]
fn examples_of_answers_fit_the_document() {
    let bar = Resource::PciBar {
        index: 0,
        base: 1 << 32,
        size: 4096,
        type_: PciBarType::Mmio64,
        prefetchable: true,
    };
    let node = DeviceNode {
        id: "v".to_owned(),
        resources: vec![bar],
        parent: Some("p".to_owned()),
        children: vec!["c".to_owned()],
        pci_bdf: Some("0000:00:05.0".to_owned()),
    };
    let device = DeviceState {
        id: "v".to_owned(),
        bdf: "0000:00:05.0".to_owned(),
        path: PathBuf::from("/d"),
        driver: Some("vfio-pci".to_owned()),
        migration_flags: vec![
            MigrationFlag::StopCopy,
            MigrationFlag::P2p,
            MigrationFlag::PreCopy,
        ],
        migration_state: Some(MigrationState::RunningP2p),
        snapshot_blocked_by: Some("the reason".to_owned()),
        conditions: vec![
            DeviceCondition::StateLost,
            DeviceCondition::Failed,
            DeviceCondition::WantedBack,
        ],
    };
    let phase = Phase {
        name: "stream".to_owned(),
        device: Some("v".to_owned()),
        start_us: 1,
        duration_us: 2,
        bytes: 3,
    };
    let info = VmInfo {
        config: VmConfig::default(),
        state: VmState::Paused,
        memory_actual_size: 1,
        device_tree: Some(BTreeMap::from([("v".to_owned(), node)])),
        devices_state: vec![device],
        timeline: Some(Timeline {
            operation: Operation::Snapshot,
            started_unix_ms: 1,
            duration_us: 5,
            phases: vec![phase],
        }),
    };
    check("VmInfo", &info);
    let text = serde_json::to_string(&info).expect("it can be written");
    assert!(text.contains(r#"{"PciBar":{"index":0,"base":4294967296,"size":4096,"type_":"Mmio64","prefetchable":true}}"#));
    assert!(text.contains(
        r#""migration_flags":["STOP_COPY","P2P","PRE_COPY"],"migration_state":"RUNNING_P2P""#
    ));
    let device = DeviceProgress {
        id: "v".to_owned(),
        phase: "save".to_owned(),
        bytes_done: 1,
        bytes_total: Some(2),
    };
    check(
        "Progress",
        &Progress {
            operation: Some(Operation::Restore),
            phase: Some("memory".to_owned()),
            bytes_done: 1,
            bytes_total: 2,
            devices: vec![device],
        },
    );
    check(
        "PingInfo",
        &PingInfo {
            build_version: "b".to_owned(),
            version: "v".to_owned(),
            pid: 1,
            features: vec!["kvm".to_owned()],
        },
    );
}
