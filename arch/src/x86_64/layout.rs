//! Every fixed guest-physical address, I/O port and interrupt line of the machine.
//!
//! RAM starts at 0, stops at 3 GiB for the 32-bit hole and goes on at 4 GiB. Below 1 MiB sit the structures a kernel
//! is booted with; the ACPI tables take the place of the legacy BIOS ROM. Nothing else in Dormouse may invent an
//! address: a snapshot is only valid on the map it was taken on. The asserts at the end refuse overlaps at compile time.

use std::ops::Range;

use vm_memory::GuestAddress;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Size of the smallest page, in bytes.
pub const PAGE_SIZE: u64 = 4 * KIB;

// Boot structures, all below the EBDA.

/// Global descriptor table of the boot CPU.
pub const GDT: u64 = 0x500;
/// Bytes reserved for [`GDT`].
pub const GDT_SIZE: u64 = 0x40;
/// `hvm_start_info` of the PVH boot protocol.
pub const PVH_START_INFO: u64 = 0x6000;
/// The PVH module list: one entry, the initramfs.
pub const PVH_MODULES: u64 = 0x6040;
/// The PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6100;
/// Bytes reserved for [`PVH_MEMORY_MAP`].
pub const PVH_MEMORY_MAP_SIZE: u64 = 0xf00;
/// `struct boot_params` ("zero page") of the Linux boot protocol; one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer: the top of the page at 0x8000.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// Root of the boot page tables; the tables below it follow page by page.
pub const PML4: u64 = 0x9000;
/// Bytes of boot page tables: PML4, one directory pointer table, four directories.
pub const PAGE_TABLES_SIZE: u64 = 6 * PAGE_SIZE;
/// Kernel command line, NUL terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes reserved for the command line, its NUL included.
pub const CMDLINE_SIZE: u64 = 64 * KIB;
/// Extended BIOS data area: end of the RAM a kernel may use below 1 MiB.
pub const EBDA: u64 = 0x9_fc00;
/// Legacy VGA window and option ROMs: RAM is there, but is not offered to the guest.
pub const LEGACY_HOLE: u64 = 0xa_0000;
/// ACPI tables; the RSDP is the first thing, where a guest that scans for it looks too.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI area.
pub const ACPI_END: u64 = RESET_VECTOR;
/// Where a PC starts in real mode: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the area that firmware keeps for itself.
pub const FIRMWARE_END: u64 = MIB;
/// Lowest address a kernel segment may have.
pub const KERNEL: u64 = MIB;

// The 32-bit hole.

/// End of RAM below 4 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of the RAM that does not fit below [`LOW_RAM_END`].
pub const HIGH_RAM: u64 = 4 * GIB;
/// Start of the window for 32-bit BARs.
pub const MMIO32: u64 = LOW_RAM_END;
/// End of the window for 32-bit BARs.
pub const MMIO32_END: u64 = 0xe800_0000;
/// PCI Express enhanced configuration space of bus 0.
pub const ECAM: u64 = MMIO32_END;
/// Bytes of [`ECAM`]: 32 slots, 8 functions, 4 KiB each.
pub const ECAM_SIZE: u64 = MIB;
/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Interrupt inputs of the I/O APIC; GSI 0 is its first.
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// Page for `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// Bytes at [`KVM_TSS`].
pub const KVM_TSS_SIZE: u64 = 3 * PAGE_SIZE;

// I/O ports.

/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Ports of a 16550.
pub const COM1_PORTS: u16 = 8;
/// Index port of the real time clock; the data port follows.
pub const RTC_PORT: u16 = 0x70;
/// Ports of the real time clock.
pub const RTC_PORTS: u16 = 2;
/// Data port of the keyboard controller.
pub const I8042_DATA_PORT: u16 = 0x60;
/// Command port of the keyboard controller (its reset line is what guests use).
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// ACPI sleep control, sleep status and reset register, one byte.
///
/// Before it writes a sleep type, a guest clears the wake status by writing 0x80; that has no effect here.
pub const ACPI_CONTROL_PORT: u16 = 0x600;
/// Value of [`ACPI_CONTROL_PORT`] that resets the machine.
pub const ACPI_RESET_VALUE: u8 = 1;
/// Sleep type of soft-off, written as `(type << 2) | 0x20` to [`ACPI_CONTROL_PORT`].
pub const ACPI_S5_SLEEP_TYPE: u8 = 5;
/// Status byte of the generic event device; bit 0 is the power button; a read clears it.
pub const GED_STATUS_PORT: u16 = 0x604;
/// Index port of PCI configuration mechanism #1.
pub const PCI_CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// Data port of PCI configuration mechanism #1.
pub const PCI_CONFIG_DATA_PORT: u16 = 0xcfc;
/// Lowest port an I/O BAR may have.
pub const PCI_IO_FIRST_PORT: u16 = 0x1000;
/// Highest port an I/O BAR may have.
pub const PCI_IO_LAST_PORT: u16 = 0xffff;

// Interrupt lines.

/// GSI of the first serial port.
pub const COM1_GSI: u32 = 4;
/// GSI of the generic event device.
pub const GED_GSI: u32 = 5;
/// First GSI that carries PCI INTx lines.
pub const INTX_FIRST_GSI: u32 = 16;
/// Number of GSIs that PCI INTx lines share.
pub const INTX_GSIS: u32 = 8;
/// Slots of the PCI bus.
pub const PCI_SLOTS: u8 = 32;

/// Most vCPUs a machine can have: APIC id 255 is the broadcast id, and MSIs carry eight bits.
pub const MAX_VCPUS: u32 = 254;
/// Highest APIC id that an MSI without extended destination can address.
pub const MAX_APIC_ID: u32 = 254;

/// The largest 64-bit BAR window.
const MMIO64_MAX_SIZE: u64 = 4 * TIB;
/// The window is aligned so that BARs of 1 GiB lose no space.
const MMIO64_ALIGN: u64 = GIB;
/// Widest physical address of the architecture, in bits.
const MAX_PHYS_BITS: u8 = 52;

/// The GSI of an INTx pin (0 = INTA) of the device in `slot`.
pub fn intx_gsi(slot: u8, pin: u8) -> u32 {
    INTX_FIRST_GSI + (u32::from(slot) + u32::from(pin)) % INTX_GSIS
}

/// Splits `size` bytes of RAM around the 32-bit hole into (start, length in bytes). Empty when `size` is 0.
pub fn ram_regions(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(LOW_RAM_END);
    [(0, low), (HIGH_RAM, size - low)]
        .into_iter()
        .filter(|&(_, len)| len > 0)
        .map(|(start, len)| (GuestAddress(start), len))
        .collect()
}

/// End of the RAM below the 32-bit hole for a machine with `ram_size` bytes.
pub fn low_ram_end(ram_size: u64) -> u64 {
    ram_size.min(LOW_RAM_END)
}

/// The window for 64-bit BARs above `ram_size` bytes of RAM, for CPUs with `phys_bits` physical address bits.
///
/// Starts 1 GiB aligned, at 4 GiB or above, and is at most 4 TiB long. It is empty when RAM leaves no room below
/// `1 << phys_bits`.
pub fn mmio64_window(ram_size: u64, phys_bits: u8) -> Range<u64> {
    let limit = 1u64 << phys_bits.min(MAX_PHYS_BITS);
    let ram_end = HIGH_RAM.saturating_add(ram_size.saturating_sub(LOW_RAM_END));
    let start = ram_end
        .checked_next_multiple_of(MMIO64_ALIGN)
        .unwrap_or(limit)
        .min(limit);
    start..limit.min(start.saturating_add(MMIO64_MAX_SIZE))
}

/// Asserts at compile time that areas, given in ascending order, do not overlap.
const fn assert_ascending(areas: &[(u64, u64)]) {
    let mut i = 0;
    while i < areas.len() {
        assert!(areas[i].0 < areas[i].1, "an area is empty");
        assert!(i == 0 || areas[i - 1].1 <= areas[i].0, "two areas overlap");
        i += 1;
    }
}

const _: () = assert_ascending(&[
    (GDT, GDT + GDT_SIZE),
    (PVH_START_INFO, PVH_START_INFO + 56),
    (PVH_MODULES, PVH_MODULES + 32),
    (PVH_MEMORY_MAP, PVH_MEMORY_MAP + PVH_MEMORY_MAP_SIZE),
    (ZERO_PAGE, ZERO_PAGE + PAGE_SIZE),
    (BOOT_STACK_TOP & !(PAGE_SIZE - 1), BOOT_STACK_TOP),
    (PML4, PML4 + PAGE_TABLES_SIZE),
    (CMDLINE, CMDLINE + CMDLINE_SIZE),
    (EBDA, LEGACY_HOLE),
    (ACPI, ACPI_END),
    (RESET_VECTOR, FIRMWARE_END),
    (KERNEL, LOW_RAM_END),
    (MMIO32, MMIO32_END),
    (ECAM, ECAM + ECAM_SIZE),
    (IOAPIC, IOAPIC + PAGE_SIZE),
    (LAPIC, LAPIC + PAGE_SIZE),
    (KVM_IDENTITY_MAP, KVM_IDENTITY_MAP + PAGE_SIZE),
    (KVM_TSS, KVM_TSS + KVM_TSS_SIZE),
    (HIGH_RAM, u64::MAX),
]);
const _: () = assert_ascending(&[
    (I8042_DATA_PORT as u64, I8042_DATA_PORT as u64 + 1),
    (I8042_COMMAND_PORT as u64, I8042_COMMAND_PORT as u64 + 1),
    (RTC_PORT as u64, (RTC_PORT + RTC_PORTS) as u64),
    (COM1_PORT as u64, (COM1_PORT + COM1_PORTS) as u64),
    (ACPI_CONTROL_PORT as u64, ACPI_CONTROL_PORT as u64 + 1),
    (GED_STATUS_PORT as u64, GED_STATUS_PORT as u64 + 1),
    (
        PCI_CONFIG_ADDRESS_PORT as u64,
        PCI_CONFIG_ADDRESS_PORT as u64 + 4,
    ),
    (PCI_CONFIG_DATA_PORT as u64, PCI_CONFIG_DATA_PORT as u64 + 4),
    (PCI_IO_FIRST_PORT as u64, PCI_IO_LAST_PORT as u64 + 1),
]);
const _: () = assert!(INTX_FIRST_GSI + INTX_GSIS <= IOAPIC_PINS);
const _: () = assert!(ECAM.is_multiple_of(ECAM_SIZE) && PML4.is_multiple_of(PAGE_SIZE));

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn intx_pins_of_one_slot_get_four_lines() {
        for slot in 0..PCI_SLOTS {
            let mut gsis: Vec<u32> = (0..4).map(|pin| intx_gsi(slot, pin)).collect();
            assert!(gsis.iter().all(|gsi| (16..24).contains(gsi)));
            gsis.sort_unstable();
            gsis.dedup();
            assert_eq!(gsis.len(), 4);
        }
        assert_eq!(intx_gsi(0, 0), 16);
        assert_eq!(intx_gsi(7, 1), 16);
    }

    #[test]
    fn ram_splits_at_the_hole() {
        assert!(ram_regions(0).is_empty());
        assert_eq!(ram_regions(4 * MIB), [(GuestAddress(0), 4 * MIB)]);
        assert_eq!(ram_regions(3 * GIB), [(GuestAddress(0), 3 * GIB)]);
        assert_eq!(
            ram_regions(5 * GIB),
            [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 2 * GIB)]
        );
    }

    #[test]
    fn mmio64_is_empty_when_ram_fills_the_address_space() {
        assert!(mmio64_window(63 * GIB, 36).is_empty());
        assert_eq!(mmio64_window(512 * MIB, 36), 4 * GIB..64 * GIB);
        assert_eq!(mmio64_window(5 * GIB, 48), 6 * GIB..6 * GIB + 4 * TIB);
    }

    proptest! {
        #[test]
        fn ram_regions_keep_the_size_and_avoid_the_hole(size in 0u64..(1 << 46)) {
            let regions = ram_regions(size);
            prop_assert_eq!(regions.iter().map(|&(_, len)| len).sum::<u64>(), size);
            for (start, len) in regions {
                let end = start.0 + len;
                prop_assert!(len > 0 && (end <= LOW_RAM_END || start.0 >= HIGH_RAM));
            }
        }

        #[test]
        fn mmio64_never_overlaps_ram(size: u64, phys_bits: u8) {
            let window = mmio64_window(size, phys_bits);
            prop_assert!(window.start <= window.end && window.end - window.start <= MMIO64_MAX_SIZE);
            prop_assert!(window.end <= 1 << phys_bits.min(52));
            if !window.is_empty() {
                prop_assert!(window.start.is_multiple_of(GIB) && window.start >= HIGH_RAM);
                let ram_end = ram_regions(size).last().map_or(0, |&(start, len)| start.0 + len);
                prop_assert!(window.start >= ram_end);
            }
        }
    }
}
