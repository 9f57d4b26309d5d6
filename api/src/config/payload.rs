//! `payload`: what the guest boots. `vmm` hands the files to its loaders.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::refuse::Unbuilt;

/// The guest's kernel and what is loaded with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PayloadConfig {
    /// Firmware image; not implemented, must be absent.
    #[serde(default, skip_serializing)]
    pub(super) firmware: Option<Unbuilt>,
    /// Kernel image, a bzImage or an ELF vmlinux. Required to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Independent guest virtual machine image; not implemented, must be absent.
    #[serde(default, skip_serializing)]
    pub(super) igvm: Option<Unbuilt>,
    /// Data for a confidential guest; not implemented, must be absent.
    #[serde(default, skip_serializing)]
    pub(super) host_data: Option<Unbuilt>,
}
