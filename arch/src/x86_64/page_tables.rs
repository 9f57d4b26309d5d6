//! Identity map of the first 4 GiB with 2 MiB pages, for kernels entered in long mode.
//!
//! Intel SDM volume 3, section 4.5 (4-level paging). The kernel replaces these tables at once; they only have to cover
//! the kernel, the zero page, the command line and the initramfs, which all lie below 3 GiB.

use crate::x86_64::layout::{PAGE_SIZE, PAGE_TABLES_SIZE, PML4};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

const ENTRIES: u64 = 512;
const ENTRY_SIZE: u64 = 8;
const DIRECTORIES: u64 = 4;

const DIRECTORY_POINTERS: u64 = PML4 + PAGE_SIZE;
const DIRECTORY: u64 = DIRECTORY_POINTERS + PAGE_SIZE;

/// The bytes to write at [`PML4`].
pub fn identity_map() -> Vec<u8> {
    let pages = DIRECTORIES * ENTRIES;
    let mut bytes = Vec::with_capacity(PAGE_TABLES_SIZE as usize);
    push_table(
        &mut bytes,
        [DIRECTORY_POINTERS | PRESENT | WRITABLE].into_iter(),
    );
    push_table(
        &mut bytes,
        (0..DIRECTORIES).map(|i| (DIRECTORY + i * PAGE_SIZE) | PRESENT | WRITABLE),
    );
    push_table(
        &mut bytes,
        (0..pages).map(|i| (i * LARGE_PAGE_SIZE) | PRESENT | WRITABLE | LARGE_PAGE),
    );
    bytes
}

/// Appends `entries` and fills up to a whole page.
fn push_table(bytes: &mut Vec<u8>, entries: impl Iterator<Item = u64>) {
    bytes.extend(entries.flat_map(u64::to_le_bytes));
    bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE as usize), 0);
}

const _: () = assert!((2 + DIRECTORIES) * ENTRIES * ENTRY_SIZE == PAGE_TABLES_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: &[u8], address: u64) -> u64 {
        let at = (address - PML4) as usize;
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Walks the tables as the CPU does.
    fn translate(bytes: &[u8], address: u64) -> Option<u64> {
        let mut table = PML4;
        for shift in [39, 30, 21] {
            let entry = entry(bytes, table + ((address >> shift) & 0x1ff) * 8);
            if entry & PRESENT == 0 {
                return None;
            }
            table = entry & !0xfff;
        }
        Some(table + (address & (LARGE_PAGE_SIZE - 1)))
    }

    #[test]
    fn maps_4_gib_to_itself_and_nothing_more() {
        let bytes = identity_map();
        assert_eq!(bytes.len() as u64, PAGE_TABLES_SIZE);
        for address in [0, 0x7000, 0x10_0200, 0xbfff_ffff, 0xffff_ffff] {
            assert_eq!(translate(&bytes, address), Some(address));
        }
        assert_eq!(translate(&bytes, 1 << 32), None);
    }
}
