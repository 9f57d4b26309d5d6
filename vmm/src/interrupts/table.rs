//! The routing table as a pure value: the fixed routes of the interrupt controllers and the messages of the functions.
//!
//! The fixed part repeats what KVM sets up with its irqchip (`default_routing` in `arch/x86/kvm/irq.c`), because every update
//! replaces the whole table. GSIs behind the I/O APIC's inputs belong to messages. The router is the only caller.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_arch::x86_64::layout::IOAPIC_PINS;
use dormouse_pci::MsiMessage;

use super::routes::{Irqchip, Route, RouteTarget};

/// Inputs of both 8259s together.
const PIC_PINS: u32 = 16;
/// Inputs of one 8259.
const PIC_PINS_EACH: u32 = 8;
/// The first GSI of messages.
pub(super) const FIRST_MESSAGE_GSI: u32 = IOAPIC_PINS;

/// The table of one VM.
#[derive(Debug)]
pub(super) struct Table {
    /// GSIs in use, with the message that each leads to while its vector is unmasked.
    messages: BTreeMap<u32, Option<MsiMessage>>,
    /// GSIs below `next` that were given back.
    returned: BTreeSet<u32>,
    /// The lowest GSI never handed out.
    next: u32,
    /// One more than the highest GSI of a message.
    end: u32,
}

impl Table {
    /// An empty table for a kernel that takes `limit` routes and GSIs below `limit` (`KVM_CAP_IRQ_ROUTING`).
    pub(super) fn new(limit: u32) -> Self {
        let message_routes = limit.saturating_sub(PIC_PINS + IOAPIC_PINS);
        Self {
            messages: BTreeMap::new(),
            returned: BTreeSet::new(),
            next: FIRST_MESSAGE_GSI,
            end: FIRST_MESSAGE_GSI + message_routes,
        }
    }

    /// The lowest free GSI, without a route yet; none when the kernel's limit is reached.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let gsi = match self.returned.pop_first() {
            Some(gsi) => gsi,
            None if self.next < self.end => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.messages.insert(gsi, None);
        Some(gsi)
    }

    /// Gives a GSI back with its route. Says whether it had a route.
    pub(super) fn release(&mut self, gsi: u32) -> bool {
        match self.messages.remove(&gsi) {
            Some(route) => {
                self.returned.insert(gsi);
                route.is_some()
            }
            None => false,
        }
    }

    /// Sets or removes the message of a GSI in use.
    pub(super) fn set(&mut self, gsi: u32, message: Option<MsiMessage>) {
        if let Some(route) = self.messages.get_mut(&gsi) {
            *route = message;
        }
    }

    /// GSIs in use for messages.
    pub(super) fn allocated(&self) -> usize {
        self.messages.len()
    }

    /// The whole table, as the kernel takes it.
    pub(super) fn routes(&self) -> Vec<Route> {
        let messages = self.messages.iter().filter_map(|(&gsi, message)| {
            let target = RouteTarget::Message((*message)?);
            Some(Route { gsi, target })
        });
        fixed_routes().chain(messages).collect()
    }
}

/// The routes of the interrupt controllers' inputs: GSI n is input n of the I/O APIC and, below 16, of the 8259s too.
fn fixed_routes() -> impl Iterator<Item = Route> {
    let pic = (0..PIC_PINS).map(|gsi| Route {
        gsi,
        target: RouteTarget::Pin {
            chip: if gsi < PIC_PINS_EACH {
                Irqchip::PicMaster
            } else {
                Irqchip::PicSlave
            },
            pin: gsi % PIC_PINS_EACH,
        },
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| Route {
        gsi,
        target: RouteTarget::Pin {
            chip: Irqchip::Ioapic,
            pin: gsi,
        },
    });
    pic.chain(ioapic)
}

#[cfg(test)]
mod tests {
    use super::{FIRST_MESSAGE_GSI, Table};
    use dormouse_pci::MsiMessage;

    #[test]
    fn table_never_outgrows_the_limit() {
        let mut table = Table::new(43);
        let gsis: Vec<_> = std::iter::from_fn(|| table.allocate()).collect();
        assert_eq!(gsis, [24, 25, 26]);
        for &gsi in &gsis {
            table.set(gsi, Some(MsiMessage::default()));
        }
        assert_eq!(table.routes().len(), 43);
        assert!(table.release(25));
        assert!(!table.release(25), "released twice");
        assert_eq!(table.allocate(), Some(25));
        assert_eq!(table.allocate(), None);
        assert_eq!(
            table.routes().len(),
            42,
            "a GSI that is handed out again has no route yet"
        );
    }

    #[test]
    fn a_limit_below_the_fixed_routes_leaves_no_gsi() {
        assert_eq!(Table::new(8).allocate(), None);
        assert_eq!(Table::new(41).allocate(), Some(FIRST_MESSAGE_GSI));
    }
}
