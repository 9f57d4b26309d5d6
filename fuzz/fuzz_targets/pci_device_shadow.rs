//! The shadow of a device with any configuration space, used in any order by a guest, a device and a host.
//!
//! The input's first byte is the number of dwords in the device's space, then follow the space, the plan and the events.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use dormouse_fuzz::device_bytes;
use dormouse_fuzz::pci_guest::Function;
use dormouse_pci::regs::CapabilityId;
use dormouse_pci::{BarIndex, BarKind, ConfigSpaceBuilder, InterruptPin};
use libfuzzer_sys::{Corpus, fuzz_target};

/// What the owner makes of the device's bytes.
#[derive(Arbitrary, Debug)]
struct Plan {
    bars: [Option<u8>; 7],
    pin: Option<u8>,
    hide_interrupts: bool,
    hide: Option<u16>,
    pass_through: [(u16, u16); 2],
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&dwords, rest)) = input.split_first() else {
        return Corpus::Reject;
    };
    let Some((space, rest)) = rest.split_at_checked(device_bytes::len(dwords)) else {
        return Corpus::Reject;
    };
    let config = device_bytes::sparse(space);
    let mut rest = Unstructured::new(rest);
    let Ok(plan) = Plan::arbitrary(&mut rest) else {
        return Corpus::Reject;
    };
    let events = Vec::arbitrary_take_rest(rest).unwrap_or_default();
    if build(&config, &plan).is_some() {
        Function::new(&|| build(&config, &plan).expect("it could be built before")).run(events);
    }
    Corpus::Keep
});

/// The shadow; none when the device is refused.
fn build(config: &[u8], plan: &Plan) -> Option<ConfigSpaceBuilder> {
    let mut builder = ConfigSpaceBuilder::from_device(config).ok()?;
    for (index, bar) in BarIndex::all().zip(&plan.bars) {
        if let Some(size_log2) = bar {
            let at = if index.is_rom() {
                0x30
            } else {
                0x10 + 4 * index.position()
            };
            let register = u32::from_le_bytes(config[at..at + 4].try_into().ok()?);
            let kind = BarKind::from_register(register, 1 << (size_log2 % 64));
            let _ = builder.bar(index, kind);
        }
    }
    if let Some(pin) = plan.pin {
        builder.interrupt_pin(InterruptPin::from_register(pin));
    }
    // An owner hides an interrupt capability that it cannot adopt.
    let adopted = !plan.hide_interrupts && builder.adopt_msi().ok()?.is_some();
    hide_unless(&mut builder, CapabilityId::MSI, adopted);
    let adopted = !plan.hide_interrupts && matches!(builder.adopt_msix(), Ok(Some(_)));
    hide_unless(&mut builder, CapabilityId::MSIX, adopted);
    if let Some(offset) = plan.hide {
        let _ = builder.hide_extended_capability(offset);
    }
    for (offset, len) in plan.pass_through {
        builder.pass_through(offset % 4096, len % 4096);
    }
    Some(builder)
}

fn hide_unless(builder: &mut ConfigSpaceBuilder, id: CapabilityId, adopted: bool) {
    let found: Vec<u8> = builder
        .capabilities()
        .iter()
        .filter(|cap| cap.id == id)
        .map(|cap| cap.offset)
        .collect();
    for offset in found.into_iter().skip(usize::from(adopted)) {
        builder.hide_capability(offset).expect("it is in the list");
    }
}
