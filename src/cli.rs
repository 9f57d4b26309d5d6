//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dormouse_api::request::DevicePath;
use dormouse_vmm::seccomp;
use tracing::level_filters::LevelFilter;

use crate::restore::parse_device;

/// A virtual machine monitor for Linux KVM that puts VMs to sleep together with the PCI devices they own.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, about, max_term_width = 100)]
pub struct Cli {
    /// What is written to standard error
    #[arg(long, value_enum, default_value_t = LogLevel::Info, global = true)]
    pub log_level: LogLevel,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a VM from a JSON config and run it until it powers off
    Run(RunArguments),
    /// Wait for requests on a socket; create, boot or restore a VM over HTTP
    Serve(ServeArguments),
    /// Wake the VM of a snapshot directory, its devices included
    Restore(RestoreArguments),
    /// Send one request to a running Dormouse
    Ctl(CtlArguments),
    /// Look into a snapshot directory
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Tell whether this host and its devices are ready for passthrough and for sleep
    #[command(
        after_long_help = "Nothing is changed. A device that is bound to a VFIO driver and not in use is opened for a moment to \
ask what it can do, which resets it.\n\nExit code 0: KVM is usable, the IOMMU is on, VFIO is there, and every device bound to a VFIO \
driver can be passed through. Exit code 1: something needs action; it is listed under PROBLEMS."
    )]
    Doctor(DoctorArguments),
}

/// Arguments of `dormouse doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// Do not open devices: say nothing of their migration, DMA logging and reset support
    #[arg(long)]
    pub no_probe: bool,
}

/// Commands of `dormouse snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Show what a snapshot holds and how it was taken
    Inspect(InspectArguments),
    /// Check every byte of a snapshot
    Verify {
        /// The snapshot's directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// Arguments of `dormouse snapshot inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The snapshot's directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// Draw the timeline into this file, as an SVG picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Arguments of `dormouse restore`.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The snapshot directory
    #[arg(long, value_name = "DIR")]
    pub snapshot: PathBuf,
    /// Let the VM run at once; without it, it stays paused until an API client resumes it
    #[arg(long)]
    pub resume: bool,
    /// Where device ID is on this host, if not where it was; may be repeated
    #[arg(long = "device", value_name = "ID=PATH", value_parser = parse_device)]
    pub devices: Vec<DevicePath>,
    /// Read all of memory before the VM runs; always so with passed-through devices
    #[arg(long)]
    pub eager: bool,
    /// Make all of memory resident before the VM runs, also where the snapshot has only zeros; implies --eager
    #[arg(long)]
    pub prefault: bool,
    /// Check the whole snapshot first, memory included
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub process: ProcessArguments,
}

/// Arguments of `dormouse serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Serve the HTTP API on this Unix socket
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    /// What happens on a system call that Dormouse does not need
    #[arg(long, value_enum, default_value_t = SeccompMode::On, value_name = "MODE")]
    pub seccomp: SeccompMode,
}

/// Arguments of `dormouse ctl`.
#[derive(Debug, Args)]
pub struct CtlArguments {
    /// The API socket of the running Dormouse
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// Requests of `dormouse ctl`.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Ask whether the VMM answers, and its version
    Ping,
    /// Create a VM from a JSON config, without booting it
    Create {
        /// The VM's config; `-` reads it from standard input
        #[arg(value_name = "FILE")]
        config: PathBuf,
    },
    /// Boot the VM that was created
    Boot,
    /// Describe the VM: its config, state and devices
    Info,
    /// Count the guest's exits
    Counters,
    /// Stop the vCPUs and the devices
    Pause,
    /// Let a paused VM go on
    Resume,
    /// Write the paused VM into a snapshot directory
    Snapshot {
        /// The directory; it is created, or must not hold a snapshot yet
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Wake the VM of a snapshot directory in a VMM that has none
    Restore {
        /// The snapshot directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Let the VM run at once
        #[arg(long)]
        resume: bool,
        /// Where device ID is on this host, if not where it was; may be repeated
        #[arg(long = "device", value_name = "ID=PATH", value_parser = parse_device)]
        devices: Vec<DevicePath>,
        /// Read each page of memory when the VM first uses it, and not all of them before it runs; without effect with
        /// passed-through devices
        #[arg(long, conflicts_with = "prefault")]
        on_demand: bool,
        /// Make all of memory resident before the VM runs, also where the snapshot has only zeros
        #[arg(long)]
        prefault: bool,
        /// Check the whole snapshot first, memory included
        #[arg(long)]
        verify: bool,
    },
    /// Tell how far a snapshot or restore is
    Progress,
    /// Stop the snapshot or restore that is under way
    Cancel,
    /// Reset the VM
    Reboot,
    /// Press the guest's power button
    PowerButton,
    /// End the VM at once; its config stays
    Shutdown,
    /// End the VM and forget its config
    Delete,
    /// End the VM and the VMM
    ShutdownVmm,
}

/// Arguments of `dormouse run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The VM's config; `-` reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    #[command(flatten)]
    pub process: ProcessArguments,
}

/// Arguments of every command that can hold a VM.
#[derive(Debug, Args)]
pub struct ProcessArguments {
    /// Serve the HTTP API on this Unix socket
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    /// What happens on a system call that Dormouse does not need
    #[arg(long, value_enum, default_value_t = SeccompMode::On, value_name = "MODE")]
    pub seccomp: SeccompMode,
}

/// Values of `--log-level`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogLevel {
    /// Nothing but the error that ends the command
    Off,
    /// Failed requests
    Error,
    /// Abnormal, harmless events too
    Warn,
    /// Rare facts of a VM's life too
    Info,
    /// Details for developers
    Debug,
    /// Everything
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Values of `--seccomp`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SeccompMode {
    /// The process is killed
    On,
    /// The kernel's audit log gets a line
    Log,
    /// Nothing
    Off,
}

impl From<SeccompMode> for seccomp::Mode {
    fn from(mode: SeccompMode) -> Self {
        match mode {
            SeccompMode::On => Self::Kill,
            SeccompMode::Log => Self::Log,
            SeccompMode::Off => Self::Off,
        }
    }
}
