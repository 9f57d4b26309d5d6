//! An emulated PCI function of any shape, used in any order by a guest, a device and a host.
#![no_main]

use arbitrary::Arbitrary;
use dormouse_fuzz::pci_guest::{Event, Function};
use dormouse_pci::regs::CapabilityId;
use dormouse_pci::{
    BarIndex, BarKind, BarOffset, Capability, ConfigSpaceBuilder, Identity, InterruptPin,
    MsiCapability, MsixCapability,
};
use libfuzzer_sys::fuzz_target;

/// What a function is made of. Parts that the model refuses are left out.
#[derive(Arbitrary, Debug)]
struct Shape {
    pin: u8,
    bars: [Option<(u8, u8)>; 7],
    msi: Option<(u8, bool, bool)>,
    msix: Option<(u16, [u8; 2], [u32; 2])>,
    capabilities: [Option<Plain>; 2],
}

/// A capability without a meaning: identifier, length, content, and the bits that a guest can write.
#[derive(Arbitrary, Debug)]
struct Plain(u8, u8, [u8; 12], [u8; 12]);

fuzz_target!(|input: (Shape, Vec<Event>)| {
    let (shape, events) = input;
    Function::new(&|| build(&shape)).run(events);
});

fn build(shape: &Shape) -> ConfigSpaceBuilder {
    let mut builder = ConfigSpaceBuilder::new(&Identity {
        vendor_id: 0x1234,
        device_id: 0x5678,
        subsystem_vendor_id: 0x1af4,
        subsystem_id: 0x1100,
        class: 0x02_00_00,
        revision: 3,
        interrupt_pin: InterruptPin::from_register(shape.pin),
    });
    for (index, bar) in BarIndex::all().zip(&shape.bars) {
        if let Some((kind, size_log2)) = bar {
            let _ = builder.bar(index, bar_kind(*kind, *size_log2));
        }
    }
    if let Some((vectors_log2, address_64, per_vector_masking)) = shape.msi {
        let _ = builder.msi(MsiCapability {
            vectors: 1 << (vectors_log2 % 7),
            address_64,
            per_vector_masking,
        });
    }
    if let Some((vectors, [table, pba], [table_offset, pba_offset])) = shape.msix {
        let place = |bar: u8, offset| {
            let bar = BarIndex::new(bar % 6).expect("a function has six BARs");
            BarOffset { bar, offset }
        };
        let _ = builder.msix(MsixCapability {
            vectors,
            table: place(table, table_offset),
            pba: place(pba, pba_offset),
        });
    }
    for Plain(id, len, body, writable) in shape.capabilities.iter().flatten() {
        let len = usize::from(*len) % body.len();
        let _ = builder.capability(&Capability {
            id: CapabilityId(*id % 0x20),
            body: body[..len].to_vec(),
            writable: writable[..len].to_vec(),
        });
    }
    builder
}

fn bar_kind(kind: u8, size_log2: u8) -> BarKind {
    let size = 1 << (size_log2 % 64);
    let prefetchable = kind & 4 != 0;
    match kind & 3 {
        0 => BarKind::Io { size },
        1 => BarKind::Mem32 { size, prefetchable },
        _ => BarKind::Mem64 { size, prefetchable },
    }
}
