//! `dormouse snapshot`: what a snapshot directory holds, and whether it is intact.
//!
//! Everything printed may come from a stranger's manifest. Names and the timeline's texts are checked when the snapshot is
//! opened; texts of the VM's config are escaped here.

mod chart;
mod figures;
mod svg;

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dormouse_api::config::VmConfig;
use dormouse_api::response::Timeline;
use dormouse_vmm::snapshot::Snapshot;
use dormouse_vmm::snapshot::format::{FORMAT_VERSION, MemoryRegion, STREAM_KIND, Section};
use serde::Serialize;

use crate::cli::{InspectArguments, SnapshotCommand};
use crate::progress_bar::ByteBar;
use figures::{bytes, date};

/// A picture that could not be saved.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the picture {}", path.display())]
struct PictureError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Runs one of the commands.
pub fn snapshot(command: &SnapshotCommand) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        SnapshotCommand::Inspect(arguments) => inspect(arguments),
        SnapshotCommand::Verify { dir } => verify(dir),
    }
}

fn inspect(arguments: &InspectArguments) -> Result<ExitCode, Box<dyn Error>> {
    let snapshot = Snapshot::open(&arguments.dir)?;
    if let Some(path) = &arguments.svg {
        let picture = svg::picture(&snapshot.manifest().timeline);
        std::fs::write(path, picture).map_err(|source| PictureError {
            path: path.clone(),
            source,
        })?;
    }
    let text = if arguments.json {
        let mut text = serde_json::to_string_pretty(&Summary::of(&snapshot))?;
        text.push('\n');
        text
    } else {
        describe(&snapshot)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn verify(dir: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let snapshot = Snapshot::open(dir)?;
    let manifest = snapshot.manifest();
    let sections: u64 = manifest.sections.iter().map(|section| section.length).sum();
    let ram: u64 = manifest
        .memory
        .regions
        .iter()
        .map(|region| region.length)
        .sum();
    snapshot.verify_all(&ByteBar::new(sections.saturating_add(ram)))?;
    print(&format!(
        "{}: intact: {} sections, {} of state, {} of RAM in use\n",
        dir.display(),
        manifest.sections.len(),
        bytes(sections),
        bytes(manifest.memory.used_bytes()),
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// What `--json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    format_version: u32,
    dormouse_version: &'a str,
    arch: &'a str,
    created_unix_ms: u64,
    memory: MemorySummary<'a>,
    sections: &'a [Section],
    timeline: &'a Timeline,
    config: &'a VmConfig,
}

#[derive(Serialize)]
struct MemorySummary<'a> {
    /// Bytes of RAM.
    size: u64,
    /// Bytes of it in chunks that are not zero.
    used: u64,
    regions: &'a [MemoryRegion],
}

impl<'a> Summary<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let manifest = snapshot.manifest();
        Self {
            format_version: FORMAT_VERSION,
            dormouse_version: &manifest.dormouse_version,
            arch: &manifest.arch,
            created_unix_ms: manifest.created_unix_ms,
            memory: MemorySummary {
                size: snapshot.config().memory.size,
                used: manifest.memory.used_bytes(),
                regions: &manifest.memory.regions,
            },
            sections: &manifest.sections,
            timeline: &manifest.timeline,
            config: snapshot.config(),
        }
    }
}

/// The text for people.
fn describe(snapshot: &Snapshot) -> String {
    let (manifest, config) = (snapshot.manifest(), snapshot.config());
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:10}{value}");
    };
    line("snapshot", snapshot.dir().display().to_string());
    line(
        "taken",
        format!(
            "{} by Dormouse {} on {}, format {FORMAT_VERSION}",
            date(manifest.created_unix_ms),
            manifest.dormouse_version,
            manifest.arch,
        ),
    );
    let vcpus = config.cpus.boot_vcpus;
    let plural = if vcpus == 1 { "" } else { "s" };
    line(
        "VM",
        format!("{vcpus} vCPU{plural}, {} of RAM", bytes(config.memory.size)),
    );
    let payload = config.payload.as_ref();
    if let Some(kernel) = payload.and_then(|payload| payload.kernel.as_ref()) {
        line("kernel", escaped(kernel));
    }
    let serial = &config.serial;
    if let Some(path) = serial.file.as_ref().or(serial.socket.as_ref()) {
        line("serial", format!("{:?} {}", serial.mode, escaped(path)));
    }
    line(
        "memory",
        format!(
            "{} in use, in units of 2 MiB",
            bytes(manifest.memory.used_bytes())
        ),
    );
    for device in &config.devices {
        let id = device.id.as_deref().unwrap_or("(no id)");
        let path = device.path.as_deref().map_or_else(String::new, escaped);
        let stream = manifest
            .sections
            .iter()
            .find(|section| section.kind == STREAM_KIND && section.instance == id);
        let state = stream.map_or_else(
            || "its state was not saved".to_owned(),
            |section| format!("{} of state", bytes(section.length)),
        );
        line("device", format!("{} {path}: {state}", id.escape_debug()));
    }
    let state = manifest
        .sections
        .iter()
        .filter(|section| section.kind != STREAM_KIND);
    for (index, section) in state.enumerate() {
        let name = if index == 0 { "state" } else { "" };
        let label = match section.instance.as_str() {
            "" => section.kind.clone(),
            instance => format!("{} {instance}", section.kind),
        };
        line(
            name,
            format!(
                "{label:32} version {} {:>10}",
                section.version,
                bytes(section.length)
            ),
        );
    }
    text.push('\n');
    text.push_str(&chart::chart(&manifest.timeline, terminal_width()));
    text
}

fn escaped(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().escape_debug().to_string()
}

/// Columns of the terminal, or what fits everywhere.
fn terminal_width() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => 80,
    }
}
