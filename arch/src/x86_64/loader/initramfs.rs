//! Places the initramfs as high in low RAM as it goes and reads it straight into guest memory.
//!
//! High, because the kernel may unpack or relocate itself upwards from its load address
//! (`Documentation/arch/x86/boot.rst`, `ramdisk_image`). Called by the parent module only.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{Error, regular_file_size};
use crate::x86_64::layout::PAGE_SIZE;

/// Reads `file` to just below `limit` and returns the range it occupies.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    file: &mut File,
    path: &Path,
    kernel_end: u64,
    limit: u64,
) -> Result<Range<u64>, Error> {
    let size = regular_file_size(file, path)?;
    let start = place(size, kernel_end, limit).ok_or_else(|| Error::InitramfsDoesNotFit {
        path: path.to_owned(),
        size,
        kernel_end,
        limit,
    })?;
    let read_failed = |source| Error::ReadInitramfs {
        path: path.to_owned(),
        address: start,
        source,
    };
    file.seek(SeekFrom::Start(0))
        .map_err(|source| read_failed(GuestMemoryError::IOError(source)))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), file, size as usize)
        .map_err(read_failed)?;
    Ok(start..start + size)
}

/// The highest page-aligned start for `size` bytes in `kernel_end..limit`.
fn place(size: u64, kernel_end: u64, limit: u64) -> Option<u64> {
    let start = limit.checked_sub(size)? & !(PAGE_SIZE - 1);
    (start >= kernel_end).then_some(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    #[test]
    fn fills_the_gap_exactly_but_no_more() {
        assert_eq!(place(0x2000, 0x1000, 0x3000), Some(0x1000));
        assert_eq!(place(0x2001, 0x1000, 0x3000), None);
        assert_eq!(place(u64::MAX, 0, 0x3000), None);
    }

    proptest! {
        #[test]
        fn stays_between_kernel_and_limit(size in 1u64..1 << 33, kernel_end in 0u64..1 << 33, limit in 0u64..1 << 33) {
            match place(size, kernel_end, limit) {
                Some(start) => {
                    prop_assert!(start.is_multiple_of(PAGE_SIZE));
                    prop_assert!(start >= kernel_end && start + size <= limit && start + size + PAGE_SIZE > limit);
                }
                None => prop_assert!(kernel_end.next_multiple_of(PAGE_SIZE) + size > limit),
            }
        }
    }
}
