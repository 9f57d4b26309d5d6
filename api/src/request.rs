//! The verbs of the API, and the bodies that come with them.
//!
//! The server makes a [`Request`] from each HTTP request and hands it to the backend; the client does the opposite.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{ConfigError, Violation, VmConfig, null_is_default, objects};

/// One call of the API.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Says which VMM answers.
    Ping,
    /// Ends the VMM.
    VmmShutdown,
    /// Stores the config of a VM.
    Create(Box<VmConfig>),
    /// Boots the stored config.
    Boot,
    /// Describes the VM.
    Info,
    /// Reads the devices' counters.
    Counters,
    /// Stops the vCPUs and devices.
    Pause,
    /// Lets a paused VM run on.
    Resume,
    /// Writes a paused VM to a directory.
    Snapshot(SnapshotRequest),
    /// Makes the VM from a snapshot.
    Restore(RestoreRequest),
    /// Stops the VM and keeps its config.
    Shutdown,
    /// Stops the VM and forgets its config.
    Delete,
    /// Stops the VM and boots it again.
    Reboot,
    /// Presses the guest's power button.
    PowerButton,
    /// Reports how far a long action is.
    Progress,
    /// Cancels the long action that is under way.
    Cancel,
}

impl Request {
    /// The command's name in the URL, the part after `/api/v1/`.
    pub fn command(&self) -> &'static str {
        match self {
            Self::Ping => "vmm.ping",
            Self::VmmShutdown => "vmm.shutdown",
            Self::Create(_) => "vm.create",
            Self::Boot => "vm.boot",
            Self::Info => "vm.info",
            Self::Counters => "vm.counters",
            Self::Pause => "vm.pause",
            Self::Resume => "vm.resume",
            Self::Snapshot(_) => "vm.snapshot",
            Self::Restore(_) => "vm.restore",
            Self::Shutdown => "vm.shutdown",
            Self::Delete => "vm.delete",
            Self::Reboot => "vm.reboot",
            Self::PowerButton => "vm.power-button",
            Self::Progress => "vm.progress",
            Self::Cancel => "vm.cancel",
        }
    }

    /// Whether the call only asks, so that it must be answered at once whatever else runs. Cancelling counts: it has to
    /// get past the action that it ends.
    pub fn is_immediate(&self) -> bool {
        matches!(
            self,
            Self::Ping | Self::Info | Self::Counters | Self::Progress | Self::Cancel
        )
    }
}

/// Body of `vm.snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SnapshotRequest {
    /// Where the snapshot goes, `file:///directory`; the directory is created if it does not exist.
    pub destination_url: String,
}

impl SnapshotRequest {
    /// A request for a snapshot in `directory`, which may be relative to the working directory.
    pub fn to_directory(directory: &Path) -> Result<Self, UrlError> {
        Ok(Self {
            destination_url: url_of_directory(directory)?,
        })
    }

    /// The directory that the URL names.
    pub fn directory(&self) -> Result<PathBuf, UrlError> {
        directory_of_url(&self.destination_url)
    }
}

/// How guest RAM comes back from a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum MemoryRestoreMode {
    /// All of it is read before the guest runs.
    #[default]
    Copy,
    /// Each page is read when the guest first touches it.
    OnDemand,
}

/// Body of `vm.restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RestoreRequest {
    /// Where the snapshot is, `file:///directory`.
    pub source_url: String,
    /// Makes all of RAM resident before the guest runs.
    #[serde(default, deserialize_with = "null_is_default")]
    pub prefault: bool,
    /// How RAM is read.
    #[serde(default, deserialize_with = "null_is_default")]
    pub memory_restore_mode: MemoryRestoreMode,
    /// Descriptors of network devices; not implemented, must be absent or empty.
    #[serde(
        default,
        deserialize_with = "objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub net_fds: Vec<RestoredNetFds>,
    /// Descriptors of opened VFIO devices, sent along in this order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vfio_fds: Option<Vec<RestoredVfioFd>>,
    /// Descriptor of an iommufd; it travels outside of JSON, and the number here is ignored.
    #[serde(default, skip_serializing)]
    pub iommufd_fd: Option<i64>,
    /// Resumes the VM once it is restored.
    #[serde(default, deserialize_with = "null_is_default")]
    pub resume: bool,
    /// New host NUMA nodes for memory zones; not implemented, must be absent or empty.
    #[serde(
        default,
        deserialize_with = "objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub zone_updates: Vec<ZoneUpdate>,
    /// New host paths for passed-through devices.
    #[serde(
        default,
        deserialize_with = "objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub device_paths: Vec<DevicePath>,
    /// Checks the checksums of all of RAM too, also when RAM is read on demand.
    #[serde(default, deserialize_with = "null_is_default")]
    pub verify: bool,
}

/// Descriptors for one network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RestoredNetFds {
    /// The device.
    pub id: String,
    /// How many descriptors it takes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub num_fds: u32,
}

/// The descriptor for one VFIO device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RestoredVfioFd {
    /// The device.
    pub id: String,
    /// The descriptor travels outside of JSON; the number here is ignored.
    #[serde(default, skip_serializing)]
    pub fd: Option<i64>,
}

/// The host NUMA node of a memory zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ZoneUpdate {
    /// The zone.
    pub id: String,
    /// The host's node.
    #[serde(default)]
    pub host_numa_node: Option<u32>,
}

/// The host path on which a device of the snapshot wakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DevicePath {
    /// The device's id in the snapshot.
    pub id: String,
    /// sysfs directory of the host device.
    pub path: PathBuf,
}

impl RestoreRequest {
    /// A request to restore from `directory`, with every option at its default.
    pub fn from_directory(directory: &Path) -> Result<Self, UrlError> {
        Ok(Self {
            source_url: url_of_directory(directory)?,
            ..Self::default()
        })
    }

    /// The directory that the URL names.
    pub fn directory(&self) -> Result<PathBuf, UrlError> {
        directory_of_url(&self.source_url)
    }

    /// Checks what can be checked without the snapshot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !self.net_fds.is_empty() {
            return Err(unbuilt("net_fds[0]", "virtio-net"));
        }
        if !self.zone_updates.is_empty() {
            return Err(unbuilt("zone_updates[0]", "a memory zone"));
        }
        if self.prefault && self.memory_restore_mode == MemoryRestoreMode::OnDemand {
            return Err(invalid(
                "prefault".to_owned(),
                Violation::Excludes {
                    other: "memory_restore_mode OnDemand",
                },
            ));
        }
        let vfio_ids = self
            .vfio_fds
            .iter()
            .flatten()
            .map(|device| device.id.as_str());
        unique_ids("vfio_fds", vfio_ids)?;
        unique_ids(
            "device_paths",
            self.device_paths.iter().map(|device| device.id.as_str()),
        )?;
        let relative = self
            .device_paths
            .iter()
            .position(|device| !device.path.is_absolute());
        match relative {
            Some(index) => Err(invalid(
                format!("device_paths[{index}].path"),
                Violation::NotAbsolute,
            )),
            None => Ok(()),
        }
    }

    /// How many descriptors have to come with the request: one per VFIO device that is listed, and an iommufd for them.
    pub fn expected_fds(&self) -> usize {
        self.vfio_fds
            .as_ref()
            .map_or(0, |devices| devices.len() + 1)
    }
}

fn unique_ids<'a>(list: &str, ids: impl Iterator<Item = &'a str>) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for (index, id) in ids.enumerate() {
        if !seen.insert(id) {
            let first = format!("another entry of {list}");
            return Err(invalid(
                format!("{list}[{index}].id"),
                Violation::Duplicate { first },
            ));
        }
    }
    Ok(())
}

fn unbuilt(path: &str, feature: &'static str) -> ConfigError {
    ConfigError::NotImplemented {
        path: path.to_owned(),
        feature,
    }
}

fn invalid(path: String, source: Violation) -> ConfigError {
    ConfigError::Invalid { path, source }
}

/// Why a snapshot's place cannot be used.
#[derive(Debug, Error)]
pub enum UrlError {
    /// The URL is no `file://` URL of an absolute path.
    #[error("the snapshot URL {url:?} is not of the form file:///directory")]
    NotADirectoryUrl {
        /// The URL as given.
        url: String,
    },
    /// JSON, and so a URL in it, is Unicode text; this path is not.
    #[error("the directory {} cannot be sent, because its name is not UTF-8", directory.display())]
    NotText {
        /// The directory as given.
        directory: PathBuf,
    },
    /// The working directory is not known, or the path is empty.
    #[error("cannot make {} an absolute path", directory.display())]
    NoAbsolutePath {
        /// The directory as given.
        directory: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
}

/// The path after `file://`, taken as it is: like Cloud Hypervisor, without decoding percent signs.
fn directory_of_url(url: &str) -> Result<PathBuf, UrlError> {
    match url.strip_prefix("file://") {
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(PathBuf::from(path)),
        _ => Err(UrlError::NotADirectoryUrl {
            url: url.chars().take(256).collect(),
        }),
    }
}

fn url_of_directory(directory: &Path) -> Result<String, UrlError> {
    let absolute = std::path::absolute(directory).map_err(|source| UrlError::NoAbsolutePath {
        directory: directory.to_owned(),
        source,
    })?;
    match absolute.to_str() {
        Some(path) => Ok(format!("file://{path}")),
        None => Err(UrlError::NotText {
            directory: directory.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{MemoryRestoreMode, RestoreRequest, SnapshotRequest};
    use crate::config::from_json;

    fn restore(text: &str) -> RestoreRequest {
        from_json(text.as_bytes()).expect("it can be read").0
    }

    #[test]
    fn restore_reads_what_the_cli_of_cloud_hypervisor_sends() {
        let request = restore(
            r#"{"source_url":"file:///s","prefault":false,"memory_restore_mode":"OnDemand","net_fds":null,
               "vfio_fds":null,"iommufd_fd":null,"resume":true,"zone_updates":[]}"#,
        );
        assert_eq!(request.memory_restore_mode, MemoryRestoreMode::OnDemand);
        assert!(request.resume);
        assert_eq!(request.expected_fds(), 0);
        assert_eq!(request.directory().expect("a directory"), Path::new("/s"));
        request.validate().expect("it is valid");
    }

    #[test]
    fn mistyped_option_is_compared_with_the_options_of_the_request() {
        let text = br#"{"source_url":"file:///s","verfy":true,"device_paths":[{"id":"v","path":"/d","cpus":1}]}"#;
        let (_, warnings): (RestoreRequest, _) = from_json(text).expect("it can be read");
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            [
                "unknown field verfy; did you mean verify?",
                "unknown field device_paths[0].cpus"
            ]
        );
    }

    #[test]
    fn restore_counts_one_fd_per_device_and_the_iommufd() {
        let request =
            restore(r#"{"source_url":"file:///s","vfio_fds":[{"id":"a","fd":null},{"id":"b"}]}"#);
        assert_eq!(request.expected_fds(), 3);
        assert_eq!(request.vfio_fds.map_or(0, |fds| fds.len()), 2);
        assert_eq!(
            restore(r#"{"source_url":"file:///s","vfio_fds":[]}"#).expected_fds(),
            1
        );
    }

    #[test]
    fn restore_refuses_what_cannot_work() {
        for (options, expected) in [
            (
                r#""prefault":true,"memory_restore_mode":"OnDemand""#,
                "cannot use prefault",
            ),
            (
                r#""net_fds":[{"id":"n","num_fds":2,"fds":null}]"#,
                "net_fds[0]: virtio-net is not implemented",
            ),
            (
                r#""zone_updates":[{"id":"z","host_numa_node":1}]"#,
                "zone_updates[0]: a memory zone",
            ),
            (
                r#""vfio_fds":[{"id":"v"},{"id":"v"}]"#,
                "cannot use vfio_fds[1].id",
            ),
            (
                r#""device_paths":[{"id":"v","path":"/a"},{"id":"v","path":"/b"}]"#,
                "cannot use device_paths[1].id",
            ),
            (
                r#""device_paths":[{"id":"v","path":"a"}]"#,
                "cannot use device_paths[0].path",
            ),
        ] {
            let error = restore(&format!(r#"{{"source_url":"file:///s",{options}}}"#)).validate();
            let error = error.expect_err("it is refused").to_string();
            assert!(error.starts_with(expected), "{options}: {error}");
        }
    }

    #[test]
    fn snapshot_url_is_the_plain_path_after_the_scheme() {
        let directory = |url: &str| {
            SnapshotRequest {
                destination_url: url.to_owned(),
            }
            .directory()
        };
        assert_eq!(
            directory("file:///a%20b/c").expect("a path"),
            PathBuf::from("/a%20b/c")
        );
        for url in ["", "/a", "file://", "file://a", "http:///a", "file:///a\0b"] {
            let error = directory(url).expect_err("it is refused").to_string();
            assert!(error.contains("file:///directory"), "{error}");
        }
        let made = SnapshotRequest::to_directory(Path::new("/a/./b")).expect("a URL");
        assert_eq!(made.destination_url, "file:///a/b");
        assert!(
            SnapshotRequest::to_directory(Path::new("s"))
                .expect("a URL")
                .directory()
                .is_ok()
        );
        assert!(SnapshotRequest::to_directory(Path::new("")).is_err());
    }
}
