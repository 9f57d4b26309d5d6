//! Checks what a manifest says, before anything is opened, mapped or allocated by it.
//!
//! A manifest is foreign input: names could lead out of the directory, numbers overflow or overlap, and texts could play
//! tricks on a terminal. After this, every name is one of ours, and every offset and length can be added and cast.

use std::collections::BTreeSet;

use dormouse_api::config::is_valid_id;

use super::format::{
    CHUNK_BYTES, MAX_STATE_BYTES, MAX_STREAM_BYTES, MEMORY_FILE, Manifest, ManifestError,
    MemoryImage, STATE_FILE, STREAM_KIND, Section, stream_file,
};

const PAGE_BYTES: u64 = 4 << 10;
/// More than every slot of a PCI bus with all its functions.
const MAX_STREAMS: usize = 256;
const MAX_SECTIONS: usize = 4096;
const MAX_REGIONS: usize = 64;
const MAX_PHASES: usize = 4096;
/// The end of what a file and a guest can address.
const MAX_ADDRESS: u64 = 1 << 52;
const MAX_TEXT_LEN: usize = 128;

/// Checks all of it but the config.
///
/// # Errors
/// The first field that is wrong.
pub fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    check_text("dormouse_version", &manifest.dormouse_version)?;
    check_text("arch", &manifest.arch)?;
    if manifest.arch != std::env::consts::ARCH {
        return Err(fault(
            "arch",
            &manifest.arch,
            "must be the architecture of this host",
        ));
    }
    check_sections(&manifest.sections)?;
    check_memory(&manifest.memory)?;
    let phases = &manifest.timeline.phases;
    if phases.len() > MAX_PHASES {
        return Err(fault(
            "timeline.phases",
            phases.len(),
            "may have at most 4096 entries",
        ));
    }
    for (index, phase) in phases.iter().enumerate() {
        check_text(&format!("timeline.phases[{index}].name"), &phase.name)?;
        if let Some(device) = &phase.device {
            check_text(&format!("timeline.phases[{index}].device"), device)?;
        }
    }
    Ok(())
}

fn check_text(field: &str, text: &str) -> Result<(), ManifestError> {
    let printable = |c: char| c == ' ' || c.is_ascii_graphic();
    if text.is_empty() || text.len() > MAX_TEXT_LEN || !text.chars().all(printable) {
        let rule = "must be 1 to 128 printable ASCII characters";
        return Err(fault(field, shortened(text), rule));
    }
    Ok(())
}

fn check_sections(sections: &[Section]) -> Result<(), ManifestError> {
    if sections.len() > MAX_SECTIONS {
        return Err(fault(
            "sections",
            sections.len(),
            "may have at most 4096 entries",
        ));
    }
    let mut seen = BTreeSet::new();
    let mut state_end = 0u64;
    for (index, section) in sections.iter().enumerate() {
        let at = |field: &str| format!("sections[{index}].{field}");
        if !is_valid_id(&section.kind) {
            return Err(fault(
                at("kind"),
                shortened(&section.kind),
                "must be a plain name",
            ));
        }
        if !section.instance.is_empty() && !is_valid_id(&section.instance) {
            let value = shortened(&section.instance);
            return Err(fault(
                at("instance"),
                value,
                "must be a plain name or empty",
            ));
        }
        if !seen.insert((&section.kind, &section.instance)) {
            let value = format!("{:?} {:?}", section.kind, section.instance);
            return Err(fault(at("kind"), value, "must be there only once"));
        }
        let (file, limit) = if section.kind == STREAM_KIND {
            (stream_file(&section.instance), MAX_STREAM_BYTES)
        } else {
            state_end = state_end.saturating_add(section.length);
            (STATE_FILE.to_owned(), MAX_STATE_BYTES)
        };
        if section.file != file {
            let rule = "must be the one file where sections of its kind are kept";
            return Err(fault(at("file"), shortened(&section.file), rule));
        }
        if section.length > limit || state_end > MAX_ADDRESS {
            return Err(fault(
                at("length"),
                section.length,
                "must be within the limit of its kind",
            ));
        }
    }
    let streams = sections
        .iter()
        .filter(|section| section.kind == STREAM_KIND);
    let count = streams.clone().count();
    if count > MAX_STREAMS || streams.clone().any(|section| section.instance.is_empty()) {
        return Err(fault(
            "sections",
            count,
            "may have at most 256 device streams, each with a name",
        ));
    }
    Ok(())
}

fn check_memory(memory: &MemoryImage) -> Result<(), ManifestError> {
    if memory.file != MEMORY_FILE {
        return Err(fault(
            "memory.file",
            shortened(&memory.file),
            "must be memory.bin",
        ));
    }
    if memory.chunk_bytes != CHUNK_BYTES {
        return Err(fault(
            "memory.chunk_bytes",
            memory.chunk_bytes,
            "must be 2097152",
        ));
    }
    if memory.regions.is_empty() || memory.regions.len() > MAX_REGIONS {
        return Err(fault(
            "memory.regions",
            memory.regions.len(),
            "must have 1 to 64 entries",
        ));
    }
    let (mut guest_end, mut file_end) = (0u64, 0u64);
    for (index, region) in memory.regions.iter().enumerate() {
        let at = |field: &str| format!("memory.regions[{index}].{field}");
        if !region.guest.is_multiple_of(PAGE_BYTES)
            || region.guest < guest_end
            || region.guest > MAX_ADDRESS
        {
            return Err(fault(
                at("guest"),
                region.guest,
                "must be a page's address above the region before",
            ));
        }
        if region.length == 0
            || !region.length.is_multiple_of(PAGE_BYTES)
            || region.length > MAX_ADDRESS
        {
            return Err(fault(
                at("length"),
                region.length,
                "must be a number of whole pages",
            ));
        }
        if region.file_offset != file_end.next_multiple_of(CHUNK_BYTES) {
            let rule = "must be the first multiple of 2 MiB after the region before";
            return Err(fault(at("file_offset"), region.file_offset, rule));
        }
        guest_end = region.guest + region.length;
        file_end = region.file_offset + region.length;
    }
    if memory.length != file_end {
        return Err(fault(
            "memory.length",
            memory.length,
            "must be the end of the last region",
        ));
    }
    check_checksums(memory)
}

fn check_checksums(memory: &MemoryImage) -> Result<(), ManifestError> {
    let mut next = 0;
    for (index, run) in memory.checksums.iter().enumerate() {
        let count = run.sums.0.len() as u64;
        let at = || format!("memory.checksums[{index}].first_chunk");
        if count == 0 || run.first_chunk < next {
            let rule = "must be after the run before, which must not be empty";
            return Err(fault(at(), run.first_chunk, rule));
        }
        let end = run.first_chunk.saturating_add(count);
        if end > memory.chunks() {
            return Err(fault(
                at(),
                run.first_chunk,
                "must leave its checksums within the file",
            ));
        }
        next = end;
    }
    Ok(())
}

fn fault(field: impl Into<String>, value: impl ToString, rule: &'static str) -> ManifestError {
    ManifestError::Field {
        field: field.into(),
        value: value.to_string(),
        rule,
    }
}

/// Foreign text for a message: escaped, and no longer than a line.
fn shortened(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    format!("{start:?}")
}
