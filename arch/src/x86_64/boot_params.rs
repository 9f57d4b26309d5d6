//! What a kernel is handed at entry: zero page or PVH start info, memory map, descriptor table, page tables.
//!
//! `Documentation/arch/x86/boot.rst` and `zero-page.rst` for Linux; Xen's `arch-x86/hvm/start_info.h` for PVH. Called by
//! `vmm` after `loader::load` and `acpi::write_acpi`, before the boot CPU gets its registers.

use std::ops::Range;

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::x86_64::boot_regs::gdt;
use crate::x86_64::layout::{
    ACPI, CMDLINE, EBDA, ECAM, ECAM_SIZE, FIRMWARE_END, GDT, KERNEL, LEGACY_HOLE, PML4,
    PVH_MEMORY_MAP, PVH_MEMORY_MAP_SIZE, PVH_MODULES, PVH_START_INFO, RESET_VECTOR, ZERO_PAGE,
    ram_regions,
};
use crate::x86_64::loader::{BootEntry, Protocol};
use crate::x86_64::page_tables::identity_map;
use crate::x86_64::reset_vector;

/// Loader id "undefined", as assigned to those without an id of their own.
const LOADER_UNDEFINED: u8 = 0xff;
const SETUP_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG: u16 = 0xaa55;
/// Protocol 2.14, the first with `acpi_rsdp_addr`.
const PROTOCOL_VERSION: u16 = 0x20e;
/// Linux's default `CONFIG_PHYSICAL_ALIGN`.
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
/// First version of the PVH start info with a memory map.
const PVH_VERSION: u32 = 1;

/// Entries of the longest memory map: five fixed ones and RAM on both sides of the hole.
const MEMORY_MAP_MAX: usize = 7;

/// A boot structure could not be written: RAM is too small or has a gap.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the {structure} at guest address {address:#x}; give the machine more memory")]
pub struct Error {
    structure: &'static str,
    address: u64,
    #[source]
    source: GuestMemoryError,
}

/// Use of a memory range, with the number both protocols give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable RAM.
    Ram = 1,
    /// Not usable, RAM or not.
    Reserved = 2,
}

/// An entry of the memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What the guest may do with it.
    pub kind: MemoryKind,
}

/// The memory map (e820) of a machine with `ram_size` bytes of RAM, at least 1 MiB, in ascending order.
pub fn memory_map(ram_size: u64) -> Vec<MemoryRange> {
    use MemoryKind::{Ram, Reserved};
    let mut map = vec![
        MemoryRange {
            range: 0..EBDA,
            kind: Ram,
        },
        MemoryRange {
            range: EBDA..LEGACY_HOLE,
            kind: Reserved,
        },
        MemoryRange {
            range: ACPI..FIRMWARE_END,
            kind: Reserved,
        },
    ];
    let mut regions = ram_regions(ram_size)
        .into_iter()
        .map(|(start, len)| start.0..start.0 + len);
    if let Some(low) = regions.next().filter(|low| low.end > KERNEL) {
        map.push(MemoryRange {
            range: KERNEL..low.end,
            kind: Ram,
        });
    }
    map.push(MemoryRange {
        range: ECAM..ECAM + ECAM_SIZE,
        kind: Reserved,
    });
    map.extend(regions.map(|range| MemoryRange { range, kind: Ram }));
    map
}

const _: () =
    assert!((MEMORY_MAP_MAX * size_of::<hvm_memmap_table_entry>()) as u64 <= PVH_MEMORY_MAP_SIZE);

/// Writes everything the kernel of `boot` expects to find in RAM, for a machine with `ram_size` bytes.
///
/// # Errors
///
/// [`Error`] when a structure does not fit into `memory`.
pub fn write(
    memory: &GuestMemoryMmap,
    boot: &BootEntry,
    ram_size: u64,
    rsdp: GuestAddress,
) -> Result<(), Error> {
    write_bytes(memory, "descriptor table", GDT, &gdt(boot.protocol))?;
    match boot.protocol {
        Protocol::Linux64 => {
            write_bytes(memory, "page tables", PML4, &identity_map())?;
            write_bytes(
                memory,
                "zero page",
                ZERO_PAGE,
                zero_page(boot, ram_size, rsdp).as_slice(),
            )?;
        }
        Protocol::Pvh => write_start_info(memory, boot, ram_size, rsdp)?,
    }
    write_bytes(memory, "reset vector", RESET_VECTOR, &reset_vector::code())
}

fn zero_page(boot: &BootEntry, ram_size: u64, rsdp: GuestAddress) -> boot_params {
    let mut hdr = boot.setup_header.unwrap_or_else(elf_setup_header);
    hdr.type_of_loader = LOADER_UNDEFINED;
    hdr.cmd_line_ptr = CMDLINE as u32;
    // A list of extra data in the file would point at nothing we have loaded.
    hdr.setup_data = 0;
    let initramfs = boot.initramfs.clone().unwrap_or(0..0);
    hdr.ramdisk_image = initramfs.start as u32;
    hdr.ramdisk_size = (initramfs.end - initramfs.start) as u32;

    let mut params = boot_params {
        hdr,
        acpi_rsdp_addr: rsdp.0,
        ..Default::default()
    };
    let map = memory_map(ram_size);
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (entry, memory) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: memory.range.start,
            size: memory.range.end - memory.range.start,
            r#type: memory.kind as u32,
        };
    }
    params.e820_table = table;
    params
}

/// The header Linux wants to see when it is entered as an ELF image, which has none.
fn elf_setup_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: SETUP_MAGIC,
        version: PROTOCOL_VERSION,
        loadflags: LOADED_HIGH,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    }
}

fn write_start_info(
    memory: &GuestMemoryMmap,
    boot: &BootEntry,
    ram_size: u64,
    rsdp: GuestAddress,
) -> Result<(), Error> {
    let map = memory_map(ram_size);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: PVH_VERSION,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp.0,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initramfs) = &boot.initramfs {
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODULES;
        let module = hvm_modlist_entry {
            paddr: initramfs.start,
            size: initramfs.end - initramfs.start,
            ..Default::default()
        };
        write_bytes(memory, "PVH module list", PVH_MODULES, module.as_slice())?;
    }
    let entries: Vec<u8> = map
        .into_iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .flat_map(|entry| entry.as_slice().to_vec())
        .collect();
    write_bytes(memory, "PVH memory map", PVH_MEMORY_MAP, &entries)?;
    write_bytes(memory, "PVH start info", PVH_START_INFO, info.as_slice())
}

fn write_bytes(
    memory: &GuestMemoryMmap,
    structure: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| Error {
            structure,
            address,
            source,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    const RSDP: GuestAddress = GuestAddress(ACPI);

    fn written(protocol: Protocol, initramfs: Option<Range<u64>>) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let boot = BootEntry {
            protocol,
            initramfs,
            ..Default::default()
        };
        write(&memory, &boot, 4 << 20, RSDP).unwrap();
        memory
    }

    #[test]
    fn reset_vector_holds_code_that_writes_the_reset_port() {
        let memory = written(Protocol::Pvh, None);
        let code: [u8; 6] = memory.read_obj(GuestAddress(RESET_VECTOR)).unwrap();
        assert_eq!(code, [0xba, 0x00, 0x06, 0xb0, 0x01, 0xee]);
    }

    #[test]
    fn zero_page_names_command_line_initramfs_and_rsdp() {
        let memory = written(Protocol::Linux64, Some(0x30_0000..0x30_1234));
        let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let hdr = params.hdr;
        assert_eq!({ hdr.header }, SETUP_MAGIC);
        assert_eq!(
            ({ hdr.ramdisk_image }, { hdr.ramdisk_size }),
            (0x30_0000, 0x1234)
        );
        assert_eq!(
            ({ hdr.cmd_line_ptr }, { params.acpi_rsdp_addr }),
            (0x2_0000, ACPI)
        );
        assert_eq!(params.e820_entries, 5);
        let ram = params.e820_table[3];
        assert_eq!(
            ({ ram.addr }, { ram.size }, { ram.r#type }),
            (0x10_0000, 0x30_0000, 1)
        );
    }

    #[test]
    fn setup_header_of_the_image_is_kept_but_not_its_data_list() {
        let header = setup_header {
            init_size: 7,
            setup_data: 0xdead,
            ..Default::default()
        };
        let boot = BootEntry {
            setup_header: Some(header),
            ..Default::default()
        };
        let hdr = zero_page(&boot, 1 << 30, RSDP).hdr;
        assert_eq!(
            ({ hdr.init_size }, { hdr.setup_data }, hdr.type_of_loader),
            (7, 0, 0xff)
        );
    }

    #[test]
    fn start_info_lists_map_and_module() {
        let memory = written(Protocol::Pvh, Some(0x30_0000..0x30_1234));
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!(
            (info.magic, info.version, info.nr_modules),
            (0x336e_c578, 1, 1)
        );
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x30_0000, 0x1234));
        let first: hvm_memmap_table_entry =
            memory.read_obj(GuestAddress(info.memmap_paddr)).unwrap();
        assert_eq!((first.addr, first.size, first.type_), (0, EBDA, 1));
        assert_eq!(info.memmap_entries, 5);
    }

    #[test]
    fn without_initramfs_there_is_no_module() {
        let memory = written(Protocol::Pvh, None);
        let info: hvm_start_info = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    }

    #[test]
    fn too_little_ram_is_an_error_that_names_the_structure() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x7000)]).unwrap();
        let error = write(&memory, &BootEntry::default(), 0x7000, RSDP).unwrap_err();
        assert!(error.to_string().contains("page tables"), "{error}");
    }

    proptest! {
        #[test]
        fn memory_map_is_sorted_and_covers_all_ram_from_1_mib(ram_size in (1u64 << 20)..(1 << 46)) {
            let map = memory_map(ram_size);
            prop_assert!(map.len() <= MEMORY_MAP_MAX);
            prop_assert!(map.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
            let ram: u64 = map
                .iter()
                .filter(|entry| entry.kind == MemoryKind::Ram)
                .map(|entry| entry.range.end - entry.range.start)
                .sum();
            prop_assert!(ram == ram_size - (KERNEL - EBDA));
        }
    }
}
