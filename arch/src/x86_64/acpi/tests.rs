//! Reads the tables back from guest memory the way a guest does.

use super::*;
use crate::x86_64::layout::{ECAM, IOAPIC, LAPIC, MAX_VCPUS};

const MMIO64: Range<u64> = 0x1_4000_0000..0x10_0000_0000;

fn written(apic_ids: &[u32]) -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let rsdp = write_acpi(
        &memory,
        &AcpiParams {
            apic_ids,
            mmio64: MMIO64,
            serial_port: true,
        },
    )
    .unwrap();
    assert_eq!(rsdp.0, ACPI);
    memory
}

fn bytes(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn u32_at(table: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(table[offset..offset + 4].try_into().unwrap())
}

fn u64_at(table: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at `address`, its length and checksum verified.
fn table(memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
    let len = u32_at(&bytes(memory, address, 8), 4) as usize;
    assert!(address >= ACPI && address + len as u64 <= ACPI_END);
    let table = bytes(memory, address, len);
    assert_eq!(sum(&table), 0, "checksum of {:?}", &table[..4]);
    table
}

/// The table with this signature, found through RSDP and XSDT.
fn find(memory: &GuestMemoryMmap, signature: &[u8; 4]) -> Vec<u8> {
    let rsdp = bytes(memory, ACPI, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(memory, u64_at(&rsdp, 24));
    let addresses = xsdt[36..].chunks_exact(8).map(|entry| u64_at(entry, 0));
    addresses
        .map(|address| table(memory, address))
        .find(|table| table.starts_with(signature))
        .unwrap()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn fadt_is_hardware_reduced_and_names_the_control_port() {
    let fadt = find(&written(&[0]), b"FACP");
    let flags = u32_at(&fadt, 112);
    assert_ne!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    let port = [1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];
    for offset in [116, 244, 256] {
        assert_eq!(fadt[offset..offset + 12], port, "register at {offset}");
    }
    assert_eq!(fadt[128], 1, "reset value");
}

#[test]
fn fadt_points_to_the_dsdt() {
    let memory = written(&[0]);
    let dsdt = table(&memory, u64_at(&find(&memory, b"FACP"), 140));
    assert!(dsdt.starts_with(b"DSDT"));
    assert!(contains(&dsdt, b"_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
    assert!(contains(&dsdt, b"\x0dACPI0013\0"));
}

#[test]
fn madt_lists_the_io_apic_and_each_vcpu() {
    let madt = find(&written(&[0, 2, 5]), b"APIC");
    assert_eq!(u32_at(&madt, 36), LAPIC as u32);
    assert_eq!(
        (madt[44], madt[45], u32_at(&madt, 48), u32_at(&madt, 52)),
        (1, 12, IOAPIC as u32, 0)
    );
    let cpus: Vec<_> = madt[56..]
        .chunks_exact(16)
        .map(|entry| {
            (
                entry[0],
                entry[1],
                u32_at(entry, 4),
                u32_at(entry, 8),
                u32_at(entry, 12),
            )
        })
        .collect();
    assert_eq!(cpus, [(9, 16, 0, 1, 0), (9, 16, 2, 1, 1), (9, 16, 5, 1, 2)]);
}

#[test]
fn mcfg_covers_bus_0() {
    let mcfg = find(&written(&[0]), b"MCFG");
    assert_eq!(
        (u64_at(&mcfg, 44), &mcfg[52..56]),
        (ECAM, &[0u8, 0, 0, 0][..])
    );
}

#[test]
fn every_interrupt_pin_has_a_route() {
    let memory = written(&[0]);
    let dsdt = table(&memory, u64_at(&find(&memory, b"FACP"), 140));
    // Slot 3, INTC: package of four, address 0x3ffff, pin 2, no link device, GSI 16 + (3 + 2) % 8.
    assert!(contains(
        &dsdt,
        &[4, 0x0c, 0xff, 0xff, 3, 0, 0x0a, 2, 0, 0x0a, 21]
    ));
    assert!(contains(
        &dsdt,
        &[4, 0x0c, 0xff, 0xff, 31, 0, 0x0a, 3, 0, 0x0a, 18]
    ));
}

#[test]
fn mmio64_window_is_announced_only_when_there_is_one() {
    let needle: Vec<u8> = [MMIO64.start, MMIO64.end - 1]
        .iter()
        .flat_map(|end| end.to_le_bytes())
        .collect();
    let with = dsdt::dsdt(&AcpiParams {
        apic_ids: &[0],
        mmio64: MMIO64,
        serial_port: true,
    });
    let without = dsdt::dsdt(&AcpiParams {
        apic_ids: &[0],
        mmio64: 0..0,
        serial_port: true,
    });
    assert!(contains(&with, &needle));
    // One QWord descriptor is 46 bytes long; the lengths of the enclosing packages do not change their encoding.
    assert_eq!(with.len() - without.len(), 46);
}

#[test]
fn serial_port_is_announced_only_when_there_is_one() {
    let has_port = |serial_port| {
        let dsdt = dsdt::dsdt(&AcpiParams {
            apic_ids: &[0],
            mmio64: MMIO64,
            serial_port,
        });
        assert_eq!(sum(&dsdt), 0);
        contains(&dsdt, b"COM1")
    };
    assert!(has_port(true));
    assert!(!has_port(false));
}

#[test]
fn most_cpus_fit_and_too_many_are_refused() {
    let ids: Vec<u32> = (0..MAX_VCPUS).collect();
    let madt = find(&written(&ids), b"APIC");
    assert_eq!(madt.len(), 56 + 16 * ids.len());
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let ids: Vec<u32> = (0..3000).collect();
    let error = write_acpi(
        &memory,
        &AcpiParams {
            apic_ids: &ids,
            mmio64: MMIO64,
            serial_port: true,
        },
    )
    .unwrap_err();
    assert!(matches!(error, Error::AreaFull { cpus: 3000, .. }));
}

#[test]
fn ram_below_the_area_is_an_error() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap();
    let error = write_acpi(
        &memory,
        &AcpiParams {
            apic_ids: &[0],
            mmio64: MMIO64,
            serial_port: true,
        },
    )
    .unwrap_err();
    assert!(matches!(error, Error::Write { address: ACPI, .. }));
}
