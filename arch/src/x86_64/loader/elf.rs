//! ELF64 kernels: checks headers and segments, finds the PVH note, then lets linux-loader copy the segments.
//!
//! System V ABI, "ELF Header" and "Program Header"; the note is `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's
//! `include/public/elfnote.h`. linux-loader trusts segment addresses and keeps the result of the last note segment
//! only, so both are dealt with here. Called by the parent module only.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use linux_loader::loader::{Elf, Error as LoaderError, KernelLoader};
use vm_memory::GuestMemoryMmap;

use super::fields::{u16_at, u32_at, u64_at};
use super::{Image, Protocol};
use crate::x86_64::layout::KERNEL;

const MAGIC: &[u8] = b"\x7fELF";
const EI_CLASS: usize = 4;
const EI_DATA: usize = 5;
const E_TYPE: usize = 16;
const E_MACHINE: usize = 18;
const E_ENTRY: usize = 24;
const E_PHOFF: usize = 32;
const E_PHENTSIZE: usize = 54;
const E_PHNUM: usize = 56;
const EHDR_SIZE: usize = 64;

const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_X86_64: u16 = 62;

const PHDR_SIZE: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Linux has five; more than this is not a kernel.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Notes of all segments together, in bytes. Linux has a few hundred.
const MAX_NOTES: u64 = 64 << 10;

const NOTE_HEADER_SIZE: usize = 12;
const NOTE_ALIGN: usize = 4;
const XEN_NOTE_NAME: &[u8] = b"Xen\0";
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// `COMMAND_LINE_SIZE` of Linux on x86 without its NUL; an ELF image carries no limit of its own.
const CMDLINE_MAX: usize = 2047;

/// Why an ELF kernel was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file ends inside its headers.
    #[error("the file is truncated: it has {size} bytes, its headers reach to {needed}")]
    Truncated {
        /// Size of the file in bytes.
        size: u64,
        /// Least size in bytes.
        needed: u64,
    },
    /// Another class, byte order, kind or machine.
    #[error(
        "it is not an executable 64-bit little-endian x86-64 image \
         (class {class}, data {data}, type {kind}, machine {machine})"
    )]
    Unsupported {
        /// `EI_CLASS`.
        class: u8,
        /// `EI_DATA`.
        data: u8,
        /// `e_type`.
        kind: u16,
        /// `e_machine`.
        machine: u16,
    },
    /// The program header table makes no sense.
    #[error(
        "its program header table is invalid: {count} entries of {entry_size} bytes at {offset:#x}"
    )]
    ProgramHeaders {
        /// `e_phnum`.
        count: u16,
        /// `e_phentsize`.
        entry_size: u16,
        /// `e_phoff`.
        offset: u64,
    },
    /// The file could not be read.
    #[error("cannot read {len} bytes at offset {offset:#x}")]
    Read {
        /// Offset in the file.
        offset: u64,
        /// Bytes asked for.
        len: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A segment is not inside the file, or is larger there than in memory.
    #[error(
        "segment {index} is invalid: {file_size} bytes at file offset {offset:#x}, {memory_size} in memory"
    )]
    Segment {
        /// Index of the program header.
        index: usize,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        file_size: u64,
        /// `p_memsz`.
        memory_size: u64,
    },
    /// A segment is not in the RAM that kernels may use.
    #[error(
        "segment {index} lies at {start:#x}, {len} bytes, outside the usable RAM {KERNEL:#x}..{ram_end:#x}; \
         give the machine more memory or link the kernel elsewhere"
    )]
    OutsideRam {
        /// Index of the program header.
        index: usize,
        /// `p_paddr`.
        start: u64,
        /// `p_memsz`.
        len: u64,
        /// End of RAM below the 32-bit hole.
        ram_end: u64,
    },
    /// Nothing to load.
    #[error("it has no loadable segment")]
    NoSegments,
    /// The notes are larger than any kernel's.
    #[error("its notes are larger than {MAX_NOTES} bytes")]
    NotesTooLarge,
    /// The entry point is in no segment.
    #[error("its entry point {0:#x} is in none of its segments")]
    EntryOutside(u64),
    /// linux-loader failed to copy the image.
    #[error("cannot copy the segments into guest memory")]
    Copy(#[source] LoaderError),
}

/// Whether `head` has the ELF magic number.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Loads the image of `size` bytes that starts with `head`.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    ram_end: u64,
    file: &mut File,
    size: u64,
    head: &[u8],
) -> Result<Image, Error> {
    let header = Header::parse(head).ok_or(Error::Truncated {
        size,
        needed: EHDR_SIZE as u64,
    })?;
    let segments = header.segments(file, size)?;
    let spans = loaded_spans(&segments, size, ram_end)?;
    let (entry, protocol) = match find_pvh_entry(&segments, file, size)? {
        Some(entry) => (u64::from(entry), Protocol::Pvh),
        None => (header.entry, Protocol::Linux64),
    };
    if !spans.iter().any(|span| span.contains(&entry)) {
        return Err(Error::EntryOutside(entry));
    }
    Elf::load(memory, None, file, None).map_err(Error::Copy)?;
    let start = spans.iter().map(|span| span.start).min().unwrap_or(KERNEL);
    let end = spans.iter().map(|span| span.end).max().unwrap_or(KERNEL);
    Ok(Image {
        entry,
        protocol,
        span: start..end,
        setup_header: None,
        cmdline_max: CMDLINE_MAX,
        initramfs_limit: ram_end,
    })
}

struct Header {
    entry: u64,
    table_offset: u64,
    table_entry_size: u16,
    table_len: u16,
    class: u8,
    data: u8,
    kind: u16,
    machine: u16,
}

impl Header {
    fn parse(head: &[u8]) -> Option<Self> {
        Some(Self {
            entry: u64_at(head, E_ENTRY)?,
            table_offset: u64_at(head, E_PHOFF)?,
            table_entry_size: u16_at(head, E_PHENTSIZE)?,
            table_len: u16_at(head, E_PHNUM)?,
            class: *head.get(EI_CLASS)?,
            data: *head.get(EI_DATA)?,
            kind: u16_at(head, E_TYPE)?,
            machine: u16_at(head, E_MACHINE)?,
        })
    }

    /// Reads the program header table, after checking that this is an image for us.
    fn segments(&self, file: &File, size: u64) -> Result<Vec<Segment>, Error> {
        let executable = matches!(self.kind, TYPE_EXEC | TYPE_DYN);
        if (self.class, self.data, self.machine) != (CLASS_64, DATA_LITTLE_ENDIAN, MACHINE_X86_64)
            || !executable
        {
            let Self {
                class,
                data,
                kind,
                machine,
                ..
            } = *self;
            return Err(Error::Unsupported {
                class,
                data,
                kind,
                machine,
            });
        }
        if usize::from(self.table_entry_size) != PHDR_SIZE
            || !(1..=MAX_PROGRAM_HEADERS).contains(&self.table_len)
            || self.table_offset < EHDR_SIZE as u64
        {
            return Err(Error::ProgramHeaders {
                count: self.table_len,
                entry_size: self.table_entry_size,
                offset: self.table_offset,
            });
        }
        let len = usize::from(self.table_len) * PHDR_SIZE;
        let needed = self.table_offset.saturating_add(len as u64);
        if needed > size {
            return Err(Error::Truncated { size, needed });
        }
        let table = read_at(file, self.table_offset, len)?;
        Ok(table
            .chunks_exact(PHDR_SIZE)
            .filter_map(Segment::parse)
            .collect())
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl Segment {
    /// `None` only when `bytes` is shorter than a program header.
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u32_at(bytes, 0)?,
            offset: u64_at(bytes, 8)?,
            address: u64_at(bytes, 24)?,
            file_size: u64_at(bytes, 32)?,
            memory_size: u64_at(bytes, 40)?,
        })
    }

    fn is_inside_file(&self, size: u64) -> bool {
        self.offset
            .checked_add(self.file_size)
            .is_some_and(|end| end <= size)
    }

    fn invalid(&self, index: usize) -> Error {
        let Self {
            offset,
            file_size,
            memory_size,
            ..
        } = *self;
        Error::Segment {
            index,
            offset,
            file_size,
            memory_size,
        }
    }
}

/// The RAM each loadable segment occupies, bss included.
fn loaded_spans(segments: &[Segment], size: u64, ram_end: u64) -> Result<Vec<Range<u64>>, Error> {
    let mut spans = Vec::with_capacity(segments.len());
    for (index, segment) in segments
        .iter()
        .enumerate()
        .filter(|(_, segment)| segment.kind == PT_LOAD)
    {
        if segment.file_size > segment.memory_size || !segment.is_inside_file(size) {
            return Err(segment.invalid(index));
        }
        if segment.memory_size == 0 {
            continue;
        }
        let start = segment.address;
        match start.checked_add(segment.memory_size) {
            Some(end) if start >= KERNEL && end <= ram_end => spans.push(start..end),
            _ => {
                return Err(Error::OutsideRam {
                    index,
                    start,
                    len: segment.memory_size,
                    ram_end,
                });
            }
        }
    }
    if spans.is_empty() {
        Err(Error::NoSegments)
    } else {
        Ok(spans)
    }
}

/// The PVH entry point, if any note segment has one.
fn find_pvh_entry(segments: &[Segment], file: &File, size: u64) -> Result<Option<u32>, Error> {
    let mut budget = MAX_NOTES;
    let mut entry = None;
    // All are checked even when the entry is found: linux-loader walks them too.
    for (index, segment) in segments
        .iter()
        .enumerate()
        .filter(|(_, segment)| segment.kind == PT_NOTE)
    {
        if !segment.is_inside_file(size) {
            return Err(segment.invalid(index));
        }
        budget = budget
            .checked_sub(segment.file_size)
            .ok_or(Error::NotesTooLarge)?;
        if entry.is_none() {
            entry = pvh_entry(&read_at(file, segment.offset, segment.file_size as usize)?);
        }
    }
    Ok(entry)
}

/// The PVH entry point in the notes of one segment.
fn pvh_entry(notes: &[u8]) -> Option<u32> {
    let mut at = 0;
    // Each round advances by a note header at least; a note that is cut off ends the walk.
    loop {
        let name_size = u32_at(notes, at)? as usize;
        let desc_size = u32_at(notes, at + 4)? as usize;
        let kind = u32_at(notes, at + 8)?;
        let name = at + NOTE_HEADER_SIZE;
        let desc = name + name_size.next_multiple_of(NOTE_ALIGN);
        let is_xen = notes.get(name..name + name_size) == Some(XEN_NOTE_NAME);
        if is_xen && kind == XEN_ELFNOTE_PHYS32_ENTRY && desc_size >= size_of::<u32>() {
            return u32_at(notes, desc);
        }
        at = desc + desc_size.next_multiple_of(NOTE_ALIGN);
    }
}

fn read_at(file: &File, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|source| Error::Read {
            offset,
            len,
            source,
        })?;
    Ok(bytes)
}
