//! bzImage: checks the setup header, then lets linux-loader copy the protected-mode part to 1 MiB.
//!
//! `Documentation/arch/x86/boot.rst`. Needs protocol 2.12 (Linux 3.8) for `xloadflags`, which says whether the image
//! has the 64-bit entry point at 0x200 bytes into its protected-mode part.

use std::fs::File;
use std::ops::Range;

use linux_loader::loader::{BzImage, Error as LoaderError, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::fields::{u16_at, u32_at, u64_at};
use super::{Image, Protocol};
use crate::x86_64::layout::KERNEL;

const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOAD_FLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const XLOAD_FLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// End of the part of the header that linux-loader reads.
const HEADER_END: usize = 0x26c;

const BOOT_FLAG_VALUE: u16 = 0xaa55;
const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"HdrS");
const MIN_VERSION: u16 = 0x20c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// A value of 0 stands for this many sectors.
const DEFAULT_SETUP_SECTS: u64 = 4;
const SECTOR: u64 = 512;
const ENTRY_64_OFFSET: u64 = 0x200;
/// Command line bytes of a kernel that does not say.
const DEFAULT_CMDLINE_SIZE: u32 = 255;

/// Why a bzImage was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file ends inside the header, or before the protected-mode part.
    #[error("the file is truncated: it has {size} bytes, its header asks for at least {needed}")]
    Truncated {
        /// Size of the file in bytes.
        size: u64,
        /// Least size in bytes.
        needed: u64,
    },
    /// The boot sector signature is missing.
    #[error("the boot flag is {0:#06x} instead of {BOOT_FLAG_VALUE:#06x}: the file is damaged")]
    BootFlag(u16),
    /// The kernel is too old to say whether it has a 64-bit entry.
    #[error(
        "it speaks boot protocol {}.{:02}, but 2.12 (Linux 3.8) or later is needed",
        version >> 8,
        version & 0xff
    )]
    Version {
        /// The version field: major in the high byte.
        version: u16,
    },
    /// A zImage, to be loaded below 1 MiB.
    #[error("it is a zImage; a bzImage (loaded at 1 MiB) is needed")]
    NotLoadedHigh,
    /// A 32-bit kernel.
    #[error("it has no 64-bit entry point; an x86-64 kernel is needed")]
    No64BitEntry,
    /// A relocatable kernel with an impossible alignment.
    #[error("its alignment {0:#x} is not a power of two")]
    Alignment(u32),
    /// The kernel does not fit into low RAM.
    #[error(
        "it needs guest memory up to {end:#x}, but low RAM ends at {ram_end:#x}; give the machine more memory"
    )]
    DoesNotFit {
        /// First address after the kernel and its decompression buffer.
        end: u64,
        /// End of RAM below the 32-bit hole.
        ram_end: u64,
    },
    /// linux-loader failed to copy the image.
    #[error("cannot copy the image into guest memory")]
    Copy(#[source] LoaderError),
}

/// Whether `head` has the setup header's magic number.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    u32_at(head, MAGIC) == Some(MAGIC_VALUE)
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
        needed: HEADER_END as u64,
    })?;
    let span = header.check(size, ram_end)?;
    let loaded =
        BzImage::load(memory, Some(GuestAddress(KERNEL)), file, None).map_err(Error::Copy)?;
    Ok(Image {
        entry: KERNEL + ENTRY_64_OFFSET,
        protocol: Protocol::Linux64,
        span,
        setup_header: loaded.setup_header,
        cmdline_max: header.cmdline_max(),
        initramfs_limit: u64::from(header.initrd_addr_max) + 1,
    })
}

/// The fields that decide where things go.
struct Header {
    boot_flag: u16,
    setup_sects: u8,
    version: u16,
    load_flags: u8,
    xload_flags: u16,
    initrd_addr_max: u32,
    alignment: u32,
    relocatable: bool,
    cmdline_size: u32,
    pref_address: u64,
    init_size: u32,
}

impl Header {
    fn parse(head: &[u8]) -> Option<Self> {
        head.get(..HEADER_END)?;
        Some(Self {
            boot_flag: u16_at(head, BOOT_FLAG)?,
            setup_sects: *head.get(SETUP_SECTS)?,
            version: u16_at(head, VERSION)?,
            load_flags: *head.get(LOAD_FLAGS)?,
            xload_flags: u16_at(head, XLOAD_FLAGS)?,
            initrd_addr_max: u32_at(head, INITRD_ADDR_MAX)?,
            alignment: u32_at(head, KERNEL_ALIGNMENT)?,
            relocatable: *head.get(RELOCATABLE)? != 0,
            cmdline_size: u32_at(head, CMDLINE_SIZE)?,
            pref_address: u64_at(head, PREF_ADDRESS)?,
            init_size: u32_at(head, INIT_SIZE)?,
        })
    }

    /// Checks the header against the file's size and RAM; returns the RAM the kernel needs to unpack itself.
    fn check(&self, size: u64, ram_end: u64) -> Result<Range<u64>, Error> {
        if self.boot_flag != BOOT_FLAG_VALUE {
            return Err(Error::BootFlag(self.boot_flag));
        }
        if self.version < MIN_VERSION {
            return Err(Error::Version {
                version: self.version,
            });
        }
        if self.load_flags & LOADED_HIGH == 0 {
            return Err(Error::NotLoadedHigh);
        }
        if self.xload_flags & XLF_KERNEL_64 == 0 {
            return Err(Error::No64BitEntry);
        }
        let setup_sects = match self.setup_sects {
            0 => DEFAULT_SETUP_SECTS,
            count => u64::from(count),
        };
        let setup_size = (setup_sects + 1) * SECTOR;
        // One byte at the entry point at the very least.
        let needed = setup_size + ENTRY_64_OFFSET + 1;
        if size < needed {
            return Err(Error::Truncated { size, needed });
        }
        let copied_end = KERNEL.saturating_add(size - setup_size);
        let end = copied_end.max(
            self.run_address()?
                .saturating_add(u64::from(self.init_size)),
        );
        if end > ram_end {
            return Err(Error::DoesNotFit { end, ram_end });
        }
        Ok(KERNEL..end)
    }

    /// Where the kernel unpacks itself to: its preferred address, or above its load address if that is higher.
    fn run_address(&self) -> Result<u64, Error> {
        if !self.relocatable {
            return Ok(self.pref_address);
        }
        if !self.alignment.is_power_of_two() {
            return Err(Error::Alignment(self.alignment));
        }
        Ok(KERNEL
            .next_multiple_of(u64::from(self.alignment))
            .max(self.pref_address))
    }

    fn cmdline_max(&self) -> usize {
        match self.cmdline_size {
            0 => DEFAULT_CMDLINE_SIZE as usize,
            bytes => bytes as usize,
        }
    }
}
