//! Machines whose devices are fakes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dormouse_api::config::VmConfig;
use dormouse_api::response::{Operation, Timeline};
use dormouse_devices::vfio::testing::{FakeHost, Model};
use dormouse_pci::PciFunction;
use dormouse_tests::not_run::kvm_guest;
use dormouse_vfio_migration::MigFlags;
use dormouse_vfio_migration::testing::{ScriptedDevice, Trace};
use dormouse_vmm::control::Calls;
use dormouse_vmm::events::EventQueue;
use dormouse_vmm::kvm::{self, Kvm};
use dormouse_vmm::machine::{
    FunctionHost, FunctionSource, Host, Machine, OpenFunction, PausedMachine, RestoreError,
    RestoreOptions, SaveError, Stopwatch, VerifiedSnapshot,
};
use dormouse_vmm::memory::RestoreMode;
use dormouse_vmm::progress::ActionProgress;
use dormouse_vmm::seccomp;
use dormouse_vmm::snapshot::Snapshot;
use dormouse_vmm::vfio;
use serde_json::{Value, json};

use super::record::Recording;

pub const MIGRATABLE: MigFlags = MigFlags::STOP_COPY.union(MigFlags::P2P);

/// A fake device of the host.
#[derive(Clone)]
pub struct Device {
    pub host: Arc<FakeHost>,
    pub migration: Arc<ScriptedDevice>,
    /// What can be seen of it without opening it.
    pub seen: Option<vfio::Identity>,
}

impl Device {
    /// A network card's virtual function: two mapped BARs, MSI and MSI-X.
    pub fn new(id: &str, trace: &Trace) -> Self {
        Self::of_model(id, Model::igb_vf(), trace)
    }

    pub fn of_model(id: &str, model: Model, trace: &Trace) -> Self {
        Self {
            host: FakeHost::named(&format!("{id} host"), model, trace),
            migration: ScriptedDevice::new(id, MIGRATABLE, trace),
            seen: None,
        }
    }
}

/// The devices of the fake host, by their ids in the VM.
type Devices = Arc<Mutex<BTreeMap<String, Device>>>;

/// Opens fakes.
struct Fakes {
    devices: Devices,
    trace: Trace,
}

impl FunctionSource for Fakes {
    fn open_functions(
        &self,
        requests: &[vfio::Request<'_>],
    ) -> Result<Vec<OpenFunction>, vfio::Error> {
        self.trace.note("source", "open");
        let devices = self.devices.lock().unwrap();
        let open = |request: &vfio::Request<'_>| {
            let device = &devices[request.id];
            OpenFunction {
                path: request.path.to_owned(),
                driver: None,
                host: Arc::clone(&device.host) as _,
                migration: Arc::clone(&device.migration) as _,
            }
        };
        Ok(requests.iter().map(open).collect())
    }
}

/// Where they are.
struct FakeFunctions {
    devices: Devices,
    trace: Trace,
}

impl FunctionHost for FakeFunctions {
    fn source(&self, _: vfio::Placement) -> Box<dyn FunctionSource> {
        Box::new(Fakes {
            devices: Arc::clone(&self.devices),
            trace: self.trace.clone(),
        })
    }

    fn survey(
        &self,
        requests: &[vfio::Request<'_>],
    ) -> Result<Vec<Option<vfio::Identity>>, vfio::Error> {
        self.trace.note("source", "survey");
        let devices = self.devices.lock().unwrap();
        let known = requests.iter().map(|request| devices[request.id].seen);
        Ok(known.collect())
    }
}

/// A host with KVM and fake devices.
pub struct Rig {
    pub recording: Recording,
    devices: Devices,
    host: Host,
    kernel: PathBuf,
    calls: Calls,
    directory: tempfile::TempDir,
    _queue: EventQueue,
}

impl Rig {
    /// A host with devices of these ids; `None`, and the test recorded as not run, where KVM cannot be used.
    pub fn new(ids: &[&str]) -> Option<Self> {
        let kernel = kvm_guest()?.pvh;
        let recording = Recording::begin();
        kvm::install_kick_handler().unwrap();
        let trace = recording.trace().clone();
        let devices = ids
            .iter()
            .map(|id| ((*id).to_owned(), Device::new(id, &trace)));
        let devices: Devices = Arc::new(Mutex::new(devices.collect()));
        let queue = EventQueue::new().unwrap();
        let source = Arc::clone(&devices);
        let host = Host {
            kvm: Arc::new(Kvm::open().unwrap()),
            events: queue.sender(),
            seccomp: seccomp::Mode::Off,
            functions: Box::new(FakeFunctions {
                devices: source,
                trace,
            }),
        };
        Some(Self {
            recording,
            devices,
            host,
            kernel,
            calls: Calls::new(queue.wake()),
            directory: tempfile::tempdir().unwrap(),
            _queue: queue,
        })
    }

    pub fn device(&self, id: &str) -> Device {
        self.devices.lock().unwrap()[id].clone()
    }

    /// Puts another device in the place of `id`, as on another host.
    pub fn replace(&self, id: &str, device: Device) {
        self.devices.lock().unwrap().insert(id.to_owned(), device);
    }

    /// Puts a device of the same model, fresh, in the place of each.
    pub fn renew(&self) {
        let trace = self.recording.trace();
        for (id, device) in &mut *self.devices.lock().unwrap() {
            *device = Device::new(id, trace);
        }
    }

    /// Two busy vCPUs, no serial port, all devices of the host.
    pub fn config(&self) -> Value {
        let device = |id: &String| json!({ "id": id, "path": format!("/fake/{id}") });
        let devices: Vec<_> = self.devices.lock().unwrap().keys().map(device).collect();
        json!({
            "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
            "memory": { "size": 32 << 20 },
            "payload": { "kernel": self.kernel, "cmdline": "spin" },
            "serial": { "mode": "Off" },
            "console": { "mode": "Off" },
            "devices": devices,
        })
    }

    /// A machine whose guest runs and has switched all its devices on: bus mastering, memory decoding, one MSI vector.
    pub fn run(&self, config: Value) -> Machine {
        let machine = Machine::build(&parse(config), &self.host, None).unwrap();
        machine.start().unwrap();
        for attached in machine.functions() {
            let write = |offset, data: &[u8]| {
                for effect in attached.function.config_write(offset, data) {
                    attached.function.apply_effect(effect);
                }
            };
            write(0x04, &0x0406_u16.to_le_bytes());
            write(0x54, &0xfee0_0000_u32.to_le_bytes());
            write(0x5c, &0x0041_u16.to_le_bytes());
            write(0x52, &1_u16.to_le_bytes());
        }
        self.recording.take();
        machine
    }

    pub fn directory(&self) -> PathBuf {
        self.directory.path().join("snapshot")
    }

    pub fn snapshot(&self, paused: &PausedMachine, config: Value) -> Result<Timeline, SaveError> {
        let progress = ActionProgress::begin(self.calls.shared(), Operation::Snapshot);
        paused.snapshot(&self.directory(), &parse(config), &progress)
    }

    /// Runs a machine, puts it to sleep, and ends it; the devices are fresh ones afterwards and nothing is recorded.
    pub fn sleep(&self) {
        let config = self.config();
        let paused = paused(self.run(config.clone()));
        self.snapshot(&paused, config).unwrap();
        drop(paused);
        self.renew();
        self.recording.take();
    }

    pub fn restore(&self) -> Result<PausedMachine, RestoreError> {
        self.restore_with(self.config())
    }

    /// Restores with a config that need not be the snapshot's.
    pub fn restore_with(&self, config: Value) -> Result<PausedMachine, RestoreError> {
        let stopwatch = Stopwatch::default();
        let snapshot = stopwatch.phase(
            "open snapshot",
            None,
            |_| 0,
            || Snapshot::open(&self.directory()),
        );
        let snapshot = snapshot.map_err(RestoreError::Snapshot)?;
        let progress = ActionProgress::begin(self.calls.shared(), Operation::Restore);
        let options = RestoreOptions {
            mode: RestoreMode::OnDemand,
            verify: false,
        };
        let config = parse(config);
        let verified =
            VerifiedSnapshot::check(snapshot, &config, options, &self.host, &progress, stopwatch)?;
        Machine::restore(verified, &config, &self.host, None, &progress).map(|(paused, _)| paused)
    }
}

fn parse(config: Value) -> VmConfig {
    let config = serde_json::from_value::<VmConfig>(config).unwrap();
    config.validate().unwrap();
    config
}

pub fn paused(machine: Machine) -> PausedMachine {
    machine
        .pause()
        .unwrap_or_else(|refused| panic!("{:?}", refused.1))
}

pub fn resumed(paused: PausedMachine) -> Machine {
    let woken = paused.resume();
    woken.unwrap_or_else(|refused| panic!("{:?}", refused.1)).0
}

/// The error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Whether `dir` holds a snapshot.
pub fn is_snapshot(dir: &Path) -> bool {
    dir.join("manifest.json").exists()
}
