//! Which pages of guest RAM were ever touched: only those can hold anything but zeros.
//!
//! Asked without touching any page. Private memory has its pages in the page table (`/proc/self/pagemap`,
//! `Documentation/admin-guide/mm/pagemap.rst`: bit 63 present, bit 62 swapped); a memfd, and the snapshot file under the RAM
//! of a VM that was restored on demand, know their own data (`lseek(2)`, SEEK_DATA). A file on hugetlbfs calls all of itself
//! data, so there the page table is asked: no other process has that file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// The unit of residence; larger pages appear as many of these.
pub const PAGE_BYTES: usize = 4 << 10;
const ENTRY_BYTES: usize = 8;
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;

/// Finds the touched pages of one RAM region.
#[derive(Debug)]
pub struct ResidentPages<'a> {
    /// Host address of the region.
    address: usize,
    /// The page table, where it matters.
    pagemap: Option<&'a File>,
    /// The file and where the region starts in it, where that matters.
    file: Option<(&'a File, u64)>,
}

impl<'a> ResidentPages<'a> {
    /// Opens the page table of this process.
    pub fn open_pagemap() -> io::Result<File> {
        File::open("/proc/self/pagemap")
    }

    /// For `region`, with the page table of this process.
    pub fn of(region: &'a GuestRegionMmap, pagemap: &'a File) -> Self {
        let shared = region.flags() & libc::MAP_SHARED != 0;
        let huge = region.is_hugetlbfs() == Some(true);
        let file = region.file_offset().filter(|_| !huge);
        Self {
            address: region.as_ptr() as usize,
            pagemap: (!shared || huge).then_some(pagemap),
            file: file.map(|offset| (offset.file(), offset.start())),
        }
    }

    /// The touched parts of `within` (offsets in the region, whole pages), in order, apart from each other.
    pub fn ranges(&self, within: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        let mut ranges = match self.pagemap {
            Some(pagemap) => self.mapped(pagemap, within.clone())?,
            None => Vec::new(),
        };
        if let Some((file, start)) = self.file {
            let range = start + within.start as u64..start + within.end as u64;
            for data in data_ranges(file, range)? {
                // Blocks of a file system may be smaller than pages.
                let first = (data.start - start) as usize / PAGE_BYTES * PAGE_BYTES;
                let end = ((data.end - start) as usize).next_multiple_of(PAGE_BYTES);
                ranges.push(first..end.min(within.end));
            }
        }
        Ok(merged(ranges))
    }

    fn mapped(&self, pagemap: &File, within: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        let mut entries = vec![0; within.len() / PAGE_BYTES * ENTRY_BYTES];
        let first = (self.address + within.start) / PAGE_BYTES;
        pagemap.read_exact_at(&mut entries, (first * ENTRY_BYTES) as u64)?;
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
        for (page, entry) in entries.iter().enumerate() {
            if u64::from_ne_bytes(*entry) & PRESENT_OR_SWAPPED == 0 {
                continue;
            }
            let start = within.start + page * PAGE_BYTES;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += PAGE_BYTES,
                _ => ranges.push(start..start + PAGE_BYTES),
            }
        }
        Ok(ranges)
    }
}

/// The union of `ranges`, in order.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The parts of `range` of a file that are no holes, in order. What is behind the end of the file is a hole.
pub fn data_ranges(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut position = range.start;
    while position < range.end {
        let start = match seek(file, SeekFrom::Data(position)) {
            Ok(start) if start < range.end => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(range.end),
            // Cut off meanwhile.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        if end <= start {
            break;
        }
        ranges.push(start..end);
        position = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::{ResidentPages, data_ranges, merged};
    use crate::memory::Ram;
    use dormouse_api::config::MemoryConfig;
    use std::os::unix::fs::FileExt;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    const PAGE: usize = 4096;

    #[test]
    fn overlapping_ranges_become_one() {
        assert_eq!(merged(vec![8..12, 0..4, 3..6, 6..7]), [0..7, 8..12]);
        assert!(merged(Vec::new()).is_empty());
    }

    #[test]
    fn a_file_knows_its_data_up_to_its_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; PAGE], 16 * PAGE as u64).unwrap();
        let found = |range| -> Vec<(u64, u64)> {
            let ranges = data_ranges(&file, range).unwrap();
            ranges.iter().map(|data| (data.start, data.end)).collect()
        };
        assert_eq!(found(0..1 << 20), [(65_536, 69_632)]);
        assert_eq!(found(65_537..69_631), [(65_537, 69_631)]);
        assert_eq!(found(69_632..2 << 20), []);
    }

    #[test]
    fn touched_pages_are_found_and_looking_touches_none() {
        let pagemap = ResidentPages::open_pagemap().unwrap();
        for shared in [false, true] {
            let mut config = MemoryConfig::of_size(16 << 20);
            (config.shared, config.thp) = (shared, false);
            let ram = Ram::new(&config).unwrap();
            for page in [0, 1, 700] {
                ram.memory()
                    .write_obj(1u8, GuestAddress(page * PAGE as u64))
                    .unwrap();
            }
            let region = ram.memory().iter().next().unwrap();
            let pages = ResidentPages::of(region, &pagemap);
            for _ in 0..2 {
                let found = pages.ranges(0..16 << 20).unwrap();
                assert_eq!(
                    found,
                    [0..2 * PAGE, 700 * PAGE..701 * PAGE],
                    "shared: {shared}"
                );
            }
            assert_eq!(pages.ranges(PAGE..3 * PAGE).unwrap()[0], PAGE..2 * PAGE);
        }
    }
}
