//! Puts a kernel, its command line and its initramfs into guest RAM.
//!
//! Takes a bzImage (Linux 64-bit boot protocol) or an x86-64 ELF image (PVH entry if it has the note, else the Linux
//! 64-bit protocol). The files are not trusted: every field that decides an address or a length is checked before
//! linux-loader copies anything. Guest RAM has to read as zero when `load` is called: the part of a segment that is not
//! in the file (bss) is not written. Called by `vmm` on every boot, before `acpi` and `boot_params`.

mod bzimage;
mod elf;
mod fields;
mod initramfs;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::x86_64::layout::{CMDLINE, CMDLINE_SIZE, LOW_RAM_END};

pub use bzimage::Error as BzImageError;
pub use elf::Error as ElfError;

/// Enough of a kernel file to hold the ELF header or the bzImage setup header.
const HEAD_SIZE: usize = 1024;

/// Why a payload could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file's metadata could not be read.
    #[error("cannot read the size of {}", path.display())]
    Inspect {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is a directory, a device, a pipe or a socket.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file has no contents.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The start of the kernel file could not be read.
    #[error("cannot read the header of kernel {}", path.display())]
    ReadHeader {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel file has neither magic number.
    #[error("kernel {} is neither a bzImage nor an ELF image", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The kernel is a bzImage that cannot be booted here.
    #[error("cannot load bzImage {}", path.display())]
    BzImage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BzImageError,
    },
    /// The kernel is an ELF image that cannot be booted here.
    #[error("cannot load ELF kernel {}", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ElfError,
    },
    /// The kernel would cut the command line off.
    #[error("the command line has {len} bytes, but this kernel takes at most {max}; shorten it")]
    CommandLineTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes the kernel accepts, without the terminating NUL.
        max: usize,
    },
    /// The command line contains a NUL byte, where the kernel would stop reading.
    #[error("the command line contains a NUL byte")]
    CommandLineNul,
    /// The command line could not be copied into RAM.
    #[error(
        "cannot write the command line at guest address {CMDLINE:#x}; give the machine more memory"
    )]
    WriteCommandLine(#[source] GuestMemoryError),
    /// No gap for the initramfs between the kernel and the end of usable RAM.
    #[error(
        "initramfs {} of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}; \
         give the machine more memory",
        path.display()
    )]
    InitramfsDoesNotFit {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// First address after the kernel, its bss and decompression buffer included.
        kernel_end: u64,
        /// End of low RAM or of what the kernel can address, whichever is lower.
        limit: u64,
    },
    /// The initramfs could not be read into RAM.
    #[error("cannot read initramfs {} to guest address {address:#x}", path.display())]
    ReadInitramfs {
        /// The file.
        path: PathBuf,
        /// Where it was to go.
        address: u64,
        /// What failed.
        #[source]
        source: GuestMemoryError,
    },
}

/// What to boot. The files' positions do not matter and change.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The kernel image, open for reading.
    pub kernel: &'a mut File,
    /// Its path, for error messages.
    pub kernel_path: &'a Path,
    /// The initramfs, open for reading, and its path for error messages.
    pub initramfs: Option<(&'a mut File, &'a Path)>,
    /// The kernel command line.
    pub cmdline: &'a str,
}

/// How the boot CPU is handed to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Linux 64-bit boot protocol: long mode, RSI points to the zero page.
    #[default]
    Linux64,
    /// PVH: 32-bit protected mode without paging, EBX points to the start info.
    Pvh,
}

/// A loaded payload: what the boot structures and the boot CPU's registers are made from.
#[derive(Clone, Debug, Default)]
pub struct BootEntry {
    /// Address of the first instruction.
    pub entry: GuestAddress,
    /// State the kernel expects there.
    pub protocol: Protocol,
    /// RAM the kernel occupies until it has its own allocator: image, bss, decompression buffer.
    pub kernel: Range<u64>,
    /// RAM the initramfs occupies.
    pub initramfs: Option<Range<u64>>,
    /// The setup header of a bzImage.
    pub setup_header: Option<setup_header>,
}

/// A kernel in RAM, whatever its file format was.
struct Image {
    entry: u64,
    protocol: Protocol,
    span: Range<u64>,
    setup_header: Option<setup_header>,
    /// Most command line bytes, without NUL.
    cmdline_max: usize,
    /// First address the initramfs may not touch.
    initramfs_limit: u64,
}

/// Loads `payload` into `memory`.
///
/// # Errors
///
/// Any [`Error`]; RAM may have been written by then, and the machine must not be started.
pub fn load(memory: &GuestMemoryMmap, payload: Payload<'_>) -> Result<BootEntry, Error> {
    let low_ram_end = contiguous_low_ram(memory);
    let image = load_kernel(memory, low_ram_end, payload.kernel, payload.kernel_path)?;
    write_cmdline(memory, payload.cmdline, image.cmdline_max)?;
    let initramfs = match payload.initramfs {
        None => None,
        Some((file, path)) => {
            let limit = image.initramfs_limit.min(low_ram_end);
            Some(initramfs::load(memory, file, path, image.span.end, limit)?)
        }
    };
    Ok(BootEntry {
        entry: GuestAddress(image.entry),
        protocol: image.protocol,
        kernel: image.span,
        initramfs,
        setup_header: image.setup_header,
    })
}

fn load_kernel(
    memory: &GuestMemoryMmap,
    ram_end: u64,
    file: &mut File,
    path: &Path,
) -> Result<Image, Error> {
    let size = regular_file_size(file, path)?;
    let mut head = [0; HEAD_SIZE];
    let head = &mut head[..HEAD_SIZE.min(usize::try_from(size).unwrap_or(HEAD_SIZE))];
    file.read_exact_at(head, 0)
        .map_err(|source| Error::ReadHeader {
            path: path.to_owned(),
            source,
        })?;
    if elf::is_elf(head) {
        elf::load(memory, ram_end, file, size, head).map_err(|source| Error::Elf {
            path: path.to_owned(),
            source,
        })
    } else if bzimage::is_bzimage(head) {
        bzimage::load(memory, ram_end, file, size, head).map_err(|source| Error::BzImage {
            path: path.to_owned(),
            source,
        })
    } else {
        Err(Error::UnknownFormat {
            path: path.to_owned(),
        })
    }
}

/// Bytes in `file`. Pipes and devices are refused: they have no size to check headers against.
fn regular_file_size(file: &File, path: &Path) -> Result<u64, Error> {
    let metadata = file.metadata().map_err(|source| Error::Inspect {
        path: path.to_owned(),
        source,
    })?;
    if !metadata.is_file() {
        return Err(Error::NotAFile {
            path: path.to_owned(),
        });
    }
    if metadata.len() == 0 {
        return Err(Error::Empty {
            path: path.to_owned(),
        });
    }
    Ok(metadata.len())
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str, kernel_max: usize) -> Result<(), Error> {
    let max = kernel_max.min(CMDLINE_SIZE as usize - 1);
    if cmdline.len() > max {
        return Err(Error::CommandLineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    if cmdline.contains('\0') {
        return Err(Error::CommandLineNul);
    }
    memory
        .write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))
        .and_then(|()| memory.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64)))
        .map_err(Error::WriteCommandLine)
}

/// End of the RAM that starts at 0 and has no gap, at most [`LOW_RAM_END`].
fn contiguous_low_ram(memory: &GuestMemoryMmap) -> u64 {
    memory
        .iter()
        .fold(0, |end, region| {
            if region.start_addr().0 == end {
                end.saturating_add(region.len())
            } else {
                end
            }
        })
        .min(LOW_RAM_END)
}
