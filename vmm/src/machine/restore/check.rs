//! Everything that can be refused before a snapshot is restored: damage, and what does not fit this host or its devices.

use std::collections::BTreeMap;

use dormouse_api::config::VmConfig;
use dormouse_arch::x86_64::cpuid::missing_features;
use dormouse_devices::vfio::VfioFunctionState;

use super::super::build::{Error as BuildError, Host};
use super::super::passthrough;
use super::super::state::FunctionPlaceState;
use super::super::timeline::Stopwatch;
use super::super::topology::Processors;
use super::sections::Sections;
use super::{Error, Options};
use crate::kvm::VcpuState;
use crate::memory::{RestoreMode, available_bytes};
use crate::progress::ActionProgress;
use crate::snapshot::Snapshot;

/// A snapshot that is intact and fits this host. Nothing was built, opened or changed for it yet.
pub struct Verified {
    pub(super) snapshot: Snapshot,
    pub(super) sections: Sections,
    pub(super) processors: Processors,
    pub(super) mode: RestoreMode,
    pub(super) stopwatch: Stopwatch,
}

impl Verified {
    /// Checks `snapshot`. `config` is the snapshot's, with the paths of devices on this host; `stopwatch` has been running since
    /// before the snapshot was opened.
    ///
    /// # Errors
    /// When the snapshot is damaged or does not fit this host or its devices.
    pub fn check(
        snapshot: Snapshot,
        config: &VmConfig,
        options: Options,
        host: &Host,
        progress: &ActionProgress,
        stopwatch: Stopwatch,
    ) -> Result<Self, Error> {
        // Devices reach RAM by DMA without faulting it in.
        let mode = if config.devices.is_empty() {
            options.mode
        } else {
            RestoreMode::Eager
        };
        progress.begin_phase("verify", 0);
        let sections = stopwatch.phase(
            "verify",
            None,
            |_| snapshot.section_bytes(),
            || {
                if options.verify {
                    snapshot.verify_all(progress).map_err(Error::Snapshot)?;
                } else {
                    snapshot
                        .verify_state_and_streams(progress)
                        .map_err(Error::Snapshot)?;
                }
                Sections::take(&snapshot, config)
            },
        )?;
        let processors = Processors::new(&config.cpus, &host.kvm)
            .map_err(|error| Error::Build(BuildError::Processors(error)))?;
        check_features(&sections.vcpus, &processors)?;
        check_memory(&snapshot, config, mode)?;
        check_devices(&sections.functions, config, host)?;
        Ok(Self {
            snapshot,
            sections,
            processors,
            mode,
            stopwatch,
        })
    }
}

fn check_features(vcpus: &[VcpuState], processors: &Processors) -> Result<(), Error> {
    for (index, vcpu) in (0..).zip(vcpus) {
        let missing = missing_features(&vcpu.cpuid, &processors.cpuid(index));
        let count = missing.len();
        if let Some(first) = missing.into_iter().next() {
            return Err(Error::MissingFeatures { count, first });
        }
    }
    Ok(())
}

/// What has to be resident at once must be there: the kernel would find out half-way, and might end somebody else's process.
fn check_memory(snapshot: &Snapshot, config: &VmConfig, mode: RestoreMode) -> Result<(), Error> {
    // Huge pages are taken from their pool, which says by itself when it is too small.
    let needed = if config.memory.hugepages {
        0
    } else if !config.devices.is_empty() || config.memory.prefault {
        // Mapping RAM for DMA pins all of it.
        config.memory.size
    } else if mode == RestoreMode::Eager {
        snapshot.memory().1.used_bytes()
    } else {
        0
    };
    match available_bytes(config.devices.is_empty()) {
        Some(available) if needed > available => Err(Error::TooLittleMemory {
            needed_mib: needed.div_ceil(1 << 20),
            available_mib: available >> 20,
        }),
        _ => Ok(()),
    }
}

/// The host's devices are there, bound to VFIO, and of the saved models, as far as this can be seen without opening them.
fn check_devices(
    saved: &BTreeMap<String, (FunctionPlaceState, VfioFunctionState)>,
    config: &VmConfig,
    host: &Host,
) -> Result<(), Error> {
    let ids = passthrough::ids(config);
    let requests = passthrough::requests(&ids, config);
    let found = host.functions.survey(&requests);
    let found = found
        .map_err(|error| Error::Build(BuildError::Passthrough(passthrough::Error::Open(error))))?;
    for (request, identity) in requests.iter().zip(found) {
        let (Some((_, state)), Some(found)) = (saved.get(request.id), identity) else {
            continue;
        };
        let saved = &state.identity;
        if (saved.vendor_id, saved.device_id, saved.class)
            != (found.vendor, found.device, found.class)
        {
            return Err(Error::Model {
                id: request.id.to_owned(),
                path: request.path.to_owned(),
                saved: format!("{:04x}:{:04x}", saved.vendor_id, saved.device_id),
                found: format!("{:04x}:{:04x}", found.vendor, found.device),
            });
        }
    }
    Ok(())
}
