//! `serial`, `console` and `debug_console`: where the guest's text goes.
//!
//! Dormouse has the 16550 serial port only; the other two are known so that configs written for Cloud Hypervisor keep
//! working, and accepted when they are off or as Cloud Hypervisor has them by default.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::object::{null_is_default, null_is_u16};

/// What a character device is connected to on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ConsoleMode {
    /// The guest has no such device.
    Off,
    /// A new pseudo terminal.
    Pty,
    /// Standard input and output of the VMM.
    Tty,
    /// Output is appended to a file.
    File,
    /// A Unix socket that the VMM listens on.
    Socket,
    /// The device exists; its output is dropped.
    #[default]
    Null,
}

/// The first 16550 serial port, `ttyS0` in Linux.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SerialConfig {
    /// What the port is connected to.
    pub mode: ConsoleMode,
    /// Path for mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Path for mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// The virtio console. Not implemented: only the modes `Off`, `Null` and Cloud Hypervisor's default `Tty` are accepted, and
/// mean that there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConsoleConfig {
    /// `Off`, `Null` or `Tty`.
    pub mode: ConsoleMode,
    /// Path for mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Path for mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Name of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Placement behind a virtual IOMMU; must be false.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub iommu: bool,
    /// PCI segment; must be 0.
    #[serde(default, deserialize_with = "null_is_default")]
    pub pci_segment: u16,
    /// Slot on the PCI bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            mode: ConsoleMode::Off,
            file: None,
            socket: None,
            id: None,
            iommu: false,
            pci_segment: 0,
            pci_device_id: None,
        }
    }
}

/// I/O port of the debug console in Cloud Hypervisor.
pub const DEBUG_CONSOLE_PORT: u16 = 233;

/// The debug console. Not implemented: only mode `Off` is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DebugConsoleConfig {
    /// `Off`.
    #[serde(default = "mode_off", deserialize_with = "null_is_off")]
    pub mode: ConsoleMode,
    /// Path for mode `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// I/O port.
    #[serde(
        default = "debug_console_port",
        deserialize_with = "null_is_u16::<DEBUG_CONSOLE_PORT, _>"
    )]
    pub iobase: u16,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self {
            mode: ConsoleMode::Off,
            file: None,
            iobase: debug_console_port(),
        }
    }
}

fn mode_off() -> ConsoleMode {
    ConsoleMode::Off
}

fn null_is_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ConsoleMode, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(ConsoleMode::Off))
}

fn debug_console_port() -> u16 {
    DEBUG_CONSOLE_PORT
}
