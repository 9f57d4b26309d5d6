//! Regions of a device: what `VFIO_DEVICE_GET_REGION_INFO` answers, capabilities included, as `host::Region`.
//!
//! The parser takes bytes and trusts none of them: capability chains that go backwards or leave the answer end there, and areas
//! are clipped to the region.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use dormouse_devices::vfio::host::Region;
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};

use super::ioctl;

/// 8-byte words of `struct vfio_region_info`.
const INFO_WORDS: usize = 4;
/// Most words of an answer: far beyond any device's list of mappable areas.
const MAX_WORDS: usize = 8 << 10;

/// A region and where it starts in the device's descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PlacedRegion {
    pub(super) region: Region,
    /// For pread, pwrite and mmap.
    pub(super) offset: u64,
}

/// Asks for one region; an index that the device does not have gives one of size 0.
pub(super) fn query(device: BorrowedFd<'_>, index: u32) -> io::Result<PlacedRegion> {
    let mut reply = vec![0; INFO_WORDS];
    match ioctl::region_info(device, index, &mut reply) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Ok(PlacedRegion::default());
        }
        answer => answer?,
    }
    let needed = (reply[0] as u32 as usize).div_ceil(size_of::<u64>());
    if needed > INFO_WORDS {
        reply = vec![0; needed.min(MAX_WORDS)];
        ioctl::region_info(device, index, &mut reply)?;
    }
    let bytes: Vec<u8> = reply.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> PlacedRegion {
    let flags = word(bytes, 4).unwrap_or(0);
    let first_cap = word(bytes, 12).unwrap_or(0) as usize;
    let size = long(bytes, 16).unwrap_or(0);
    let offset = long(bytes, 24).unwrap_or(0);
    let mut sparse = None;
    let mut msix_mappable = false;
    if flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
        let mut at = first_cap;
        while let (Some(head), Some(next)) = (word(bytes, at), word(bytes, at + 4)) {
            match head & 0xffff {
                VFIO_REGION_INFO_CAP_SPARSE_MMAP => sparse = Some(sparse_areas(bytes, at, size)),
                VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => msix_mappable = true,
                _ => {}
            }
            // The kernel appends, so a chain only goes forward.
            if next as usize <= at {
                break;
            }
            at = next as usize;
        }
    }
    let mappable = match sparse {
        _ if flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || size == 0 => Vec::new(),
        Some(areas) => areas,
        None => std::iter::once(0..size).collect(),
    };
    let region = Region {
        size,
        readable: flags & VFIO_REGION_INFO_FLAG_READ != 0,
        writable: flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
        mappable,
        msix_mappable,
    };
    PlacedRegion { region, offset }
}

/// `struct vfio_region_info_cap_sparse_mmap` at `at`: header, count, a reserved word, then offset and size of each area.
fn sparse_areas(bytes: &[u8], at: usize, region_size: u64) -> Vec<Range<u64>> {
    let count = word(bytes, at + 8).unwrap_or(0) as usize;
    let area = |index: usize| {
        let start = long(bytes, at + 16 + index * 16)?;
        let size = long(bytes, at + 24 + index * 16)?;
        Some(start..start.saturating_add(size).min(region_size))
    };
    let mut areas: Vec<_> = (0..count)
        .map_while(area)
        .filter(|area: &Range<u64>| !area.is_empty())
        .collect();
    areas.sort_by_key(|area| area.start);
    areas
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::parse;

    const READ_WRITE_MMAP: u32 = 7;
    const CAPS: u32 = 8;

    fn info(flags: u32, cap_offset: u32, size: u64) -> Vec<u8> {
        let words = [32u32, flags, 0, cap_offset];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(size.to_ne_bytes());
        bytes.extend((2u64 << 40).to_ne_bytes());
        bytes
    }

    fn capability(bytes: &mut Vec<u8>, id: u16, next: u32, body: &[u64]) {
        bytes.extend(id.to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
    }

    #[test]
    fn a_region_without_capabilities_is_mappable_as_a_whole() {
        let placed = parse(&info(READ_WRITE_MMAP, 0, 0x4000));
        assert_eq!(placed.offset, 2 << 40);
        assert_eq!(
            placed.region.mappable.as_slice(),
            std::slice::from_ref(&(0..0x4000))
        );
        assert!(placed.region.readable && placed.region.writable && !placed.region.msix_mappable);
        assert!(parse(&info(1, 0, 0x4000)).region.mappable.is_empty());
        assert!(
            parse(&info(READ_WRITE_MMAP, 0, 0))
                .region
                .mappable
                .is_empty()
        );
    }

    #[test]
    fn sparse_areas_replace_the_whole_and_are_clipped() {
        let mut bytes = info(READ_WRITE_MMAP | CAPS, 32, 0x4000);
        capability(&mut bytes, 3, 40, &[]);
        capability(
            &mut bytes,
            1,
            0,
            &[3, 0x3000, u64::MAX, 0, 0x1000, 0x9000, 0x1000],
        );
        let region = parse(&bytes).region;
        assert_eq!(region.mappable, [0..0x1000, 0x3000..0x4000]);
        assert!(region.msix_mappable);
    }

    #[test]
    fn a_chain_that_turns_back_ends() {
        let mut bytes = info(READ_WRITE_MMAP | CAPS, 32, 0x1000);
        capability(&mut bytes, 9, 32, &[]);
        assert_eq!(parse(&bytes).region.mappable.len(), 1);
    }

    proptest! {
        #[test]
        fn any_answer_gives_areas_inside_of_the_region(
            tail in proptest::collection::vec(any::<u8>(), 0..200),
            flags in 0u32..16,
            cap_offset in 0u32..250,
            size: u64,
        ) {
            let mut bytes = info(flags, cap_offset, size);
            bytes.extend(tail);
            for area in parse(&bytes).region.mappable {
                prop_assert!(area.start < area.end && area.end <= size);
            }
        }
    }
}
