//! Numbers of KVM memory slots: RAM takes the first ones, mapped BARs the rest.

use std::collections::BTreeSet;
use std::sync::Mutex;

/// Hands out slot numbers and takes them back, so that hotplug and BAR moves never run out.
#[derive(Debug)]
pub struct SlotAllocator {
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// Numbers below `next` that were given back.
    returned: BTreeSet<u32>,
    /// The lowest number never handed out.
    next: u32,
    /// One more than the highest number.
    end: u32,
}

impl SlotAllocator {
    /// Slots `0..end`, `end` as `KVM_CAP_NR_MEMSLOTS` says.
    #[must_use]
    pub fn new(end: u32) -> Self {
        Self {
            free: Mutex::new(Free {
                returned: BTreeSet::new(),
                next: 0,
                end,
            }),
        }
    }

    /// The lowest free slot, or none when the host's limit is reached.
    #[must_use]
    pub fn allocate(&self) -> Option<u32> {
        let mut free = self.lock();
        if let Some(slot) = free.returned.pop_first() {
            return Some(slot);
        }
        let slot = free.next;
        if slot >= free.end {
            return None;
        }
        free.next += 1;
        Some(slot)
    }

    /// Gives a slot back. A number that was never handed out is ignored.
    pub fn free(&self, slot: u32) {
        let mut free = self.lock();
        if slot < free.next {
            free.returned.insert(slot);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::SlotAllocator;

    #[test]
    fn hands_out_the_lowest_free_slot_up_to_the_limit() {
        let slots = SlotAllocator::new(3);
        assert_eq!(
            [
                slots.allocate(),
                slots.allocate(),
                slots.allocate(),
                slots.allocate()
            ],
            [Some(0), Some(1), Some(2), None]
        );
        slots.free(1);
        slots.free(7);
        assert_eq!(slots.allocate(), Some(1));
        assert_eq!(slots.allocate(), None);
    }
}
