//! What the host answers: KVM's abilities, the devices, huge pages, and what opened VFIO devices say that they can do.
//!
//! Called once per run of the command; `advice` and `text` only look at the values. A question that the host does not answer is a
//! fact too, never an error of the command.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use dormouse_vmm::kvm::Capabilities;
use dormouse_vmm::vfio::Roots;
use dormouse_vmm::vfio::inspect::{self, Features, Host};
use serde::Serialize;

use super::variant;

/// The only version that there is, and the only one with which KVM opens.
const KVM_API_VERSION: u32 = 12;

/// Everything that was found out.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// Release of the running kernel.
    pub kernel: String,
    /// Whether VMs can run.
    pub kvm: Kvm,
    /// What there is for passthrough.
    pub host: Host,
    /// Pools of huge pages, by size.
    pub huge_pages: Vec<HugePages>,
    /// Answers of the devices that are bound to a VFIO driver, by name. Empty when they were not to be asked.
    pub probes: BTreeMap<String, Probe>,
    /// VFIO drivers made for a PCI function, by its address: only they can save its state.
    pub variant_drivers: BTreeMap<String, String>,
}

/// KVM of this host.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Kvm {
    /// `/dev/kvm` opened and a VM could be created.
    Usable {
        /// Version of KVM's API.
        api_version: u32,
        /// Most vCPUs of a VM.
        max_vcpus: u32,
        /// Optional abilities that are absent, and what follows.
        lacks: Vec<&'static str>,
    },
    /// No VM can run.
    Unusable {
        /// Why, and what to do.
        reason: String,
    },
}

/// A pool of huge pages.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Bytes of one page.
    pub size: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Pages that nobody has taken.
    pub free: u64,
}

/// What came of opening a device.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Probe {
    /// It said what it can do.
    Answered(Features),
    /// Another process has it, or a device of its group; it was left alone.
    InUse,
    /// It cannot be opened or does not answer.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

impl Facts {
    /// Asks the host; opens free VFIO devices only if `probe`.
    pub fn gather(probe: bool) -> Self {
        let roots = Roots::default();
        let host = inspect::host(&roots);
        let kernel = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let of_modules = |file| {
            let text = fs::read(format!("/lib/modules/{kernel}/{file}"));
            String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
        };
        let modules = of_modules("modules.alias");
        let builtin = of_modules("modules.builtin.modinfo");
        Self {
            kvm: Kvm::ask(),
            huge_pages: huge_pages(&roots.sys),
            probes: if probe {
                probe_all(&roots, &host)
            } else {
                BTreeMap::new()
            },
            variant_drivers: variant::drivers(&modules, &builtin, &host.functions),
            kernel,
            host,
        }
    }
}

impl Kvm {
    fn ask() -> Self {
        let asked = dormouse_vmm::kvm::Kvm::open().and_then(|kvm| {
            kvm.create_vm()?;
            Ok(*kvm.capabilities())
        });
        match asked {
            Ok(capabilities) => Self::Usable {
                api_version: KVM_API_VERSION,
                max_vcpus: capabilities.max_vcpus,
                lacks: lacks(&capabilities),
            },
            Err(error) => Self::Unusable {
                reason: chain(&error),
            },
        }
    }
}

/// Abilities that KVM does not have here, with what follows for VMs.
fn lacks(capabilities: &Capabilities) -> Vec<&'static str> {
    let abilities = [
        (
            capabilities.nested_state_bytes != 0,
            "nested state: guests see no hardware virtualization",
        ),
        (
            capabilities.tsc_control,
            "TSC frequency control: a VM wakes only where the TSC has the frequency it fell asleep with",
        ),
        (
            capabilities.tsc_deadline_timer,
            "the TSC deadline timer: guests use the APIC's own timer",
        ),
        (
            capabilities.kvmclock_ctrl,
            "KVM_KVMCLOCK_CTRL: guests are not told that they slept, their watchdogs may complain",
        ),
        (
            capabilities.vcpu_events,
            "pending vCPU events: an exception under way is not part of a snapshot",
        ),
        (
            capabilities.debug_regs,
            "debug registers: breakpoints of a guest are not part of a snapshot",
        ),
        (
            capabilities.xcrs,
            "extended control registers: they are not part of a snapshot",
        ),
    ];
    abilities
        .into_iter()
        .filter_map(|(present, consequence)| (!present).then_some(consequence))
        .collect()
}

fn probe_all(roots: &Roots, host: &Host) -> BTreeMap<String, Probe> {
    // An obstacle has its own advice, and such a device does not open anyway.
    let devices = host
        .functions
        .iter()
        .chain(&host.mdevs)
        .filter(|device| device.host.vfio_driver && device.obstacle.is_none());
    devices
        .map(|device| {
            let answer = match inspect::probe(roots, &device.host, None) {
                Ok(features) => Probe::Answered(features),
                Err(error) if inspect::is_in_use(&error) => Probe::InUse,
                Err(error) => Probe::Failed {
                    reason: chain(&error),
                },
            };
            (device.host.name.clone(), answer)
        })
        .collect()
}

fn huge_pages(sys: &Path) -> Vec<HugePages> {
    let Ok(entries) = fs::read_dir(sys.join("kernel/mm/hugepages")) else {
        return Vec::new();
    };
    let mut pools: Vec<_> = entries
        .filter_map(|entry| read_pool(&entry.ok()?.path()))
        .collect();
    pools.sort_by_key(|pool| pool.size);
    pools
}

/// `hugepages-2048kB` with its counters.
fn read_pool(directory: &Path) -> Option<HugePages> {
    let name = directory.file_name()?.to_str()?;
    let kib: u64 = name
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    let count = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        text.trim().parse().ok()
    };
    Some(HugePages {
        size: kib.checked_mul(1024)?,
        total: count("nr_hugepages")?,
        free: count("free_hugepages")?,
    })
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_huge_pages_are_listed_by_size() {
        let dir = tempfile::tempdir().unwrap();
        for (name, total, free) in [
            ("hugepages-1048576kB", "4\n", "1\n"),
            ("hugepages-2048kB", "0\n", "0\n"),
            ("hugepages-odd", "1\n", "1\n"),
        ] {
            let pool = dir.path().join("kernel/mm/hugepages").join(name);
            fs::create_dir_all(&pool).unwrap();
            fs::write(pool.join("nr_hugepages"), total).unwrap();
            fs::write(pool.join("free_hugepages"), free).unwrap();
        }
        let pool = |size, total, free| HugePages { size, total, free };
        assert_eq!(
            huge_pages(dir.path()),
            [pool(2 << 20, 0, 0), pool(1 << 30, 4, 1)]
        );
        assert_eq!(huge_pages(&dir.path().join("nowhere")), []);
    }
}
