//! Which parts of a BAR a guest reaches without an exit, as a pure calculation.
//!
//! Starts from what the kernel lets user space map, takes out the pages that have to be trapped, and rounds inwards to whole
//! pages. A BAR shorter than a page is never mapped: a mapping covers a page, and nothing keeps the guest from moving another
//! BAR into the rest of it.

use std::ops::Range;

use super::host::Region;

/// Page size of the hosts that Dormouse runs on, in bytes.
pub(super) const PAGE: u64 = 4096;
/// Most areas that a device may be split into; beyond that the rest is trapped.
const MAX_AREAS: usize = 64;

/// The areas of a region to map, ascending, page-aligned and apart from each other. `trapped` are byte ranges in the region
/// that guest accesses must not reach directly.
pub(super) fn mappable_areas(region: &Region, trapped: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut wanted: Vec<Range<u64>> = region
        .mappable
        .iter()
        .map(|area| round_up(area.start)..round_down(area.end.min(region.size)))
        .collect();
    wanted.sort_unstable_by_key(|area| area.start);
    for hole in trapped {
        let hole = round_down(hole.start)..round_up(hole.end);
        wanted = wanted
            .into_iter()
            .flat_map(|area| {
                let before = area.start..area.end.min(hole.start);
                let behind = area.start.max(hole.end)..area.end;
                [before, behind]
            })
            .filter(|area| area.start < area.end)
            .collect();
    }
    let mut areas: Vec<Range<u64>> = Vec::new();
    for area in wanted {
        // A device that names a page twice gets it mapped once.
        let start = areas
            .last()
            .map_or(area.start, |last| last.end.max(area.start));
        if start < area.end && areas.len() < MAX_AREAS {
            areas.push(start..area.end);
        }
    }
    areas
}

fn round_down(offset: u64) -> u64 {
    offset & !(PAGE - 1)
}

fn round_up(offset: u64) -> u64 {
    offset.checked_next_multiple_of(PAGE).unwrap_or(!(PAGE - 1))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "areas are lists of ranges")]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::{PAGE, Region, mappable_areas};

    fn region(size: u64, mappable: &[(u64, u64)]) -> Region {
        Region {
            size,
            readable: true,
            writable: true,
            mappable: mappable.iter().map(|&(start, end)| start..end).collect(),
            msix_mappable: false,
        }
    }

    #[test]
    fn pages_to_trap_are_cut_out() {
        let whole = region(0x8000, &[(0, 0x8000)]);
        let check = |trapped: &[(u64, u64)], expected: &[(u64, u64)]| {
            let trapped: Vec<_> = trapped.iter().map(|&(start, end)| start..end).collect();
            let expected: Vec<_> = expected.iter().map(|&(start, end)| start..end).collect();
            assert_eq!(mappable_areas(&whole, &trapped), expected);
        };
        check(&[], &[(0, 0x8000)]);
        check(&[(0x2010, 0x2020)], &[(0, 0x2000), (0x3000, 0x8000)]);
        check(&[(0x0, 0x10), (0x7ff8, 0x8000)], &[(0x1000, 0x7000)]);
        check(
            &[(0x2000, 0x3001), (0x3800, 0x3808)],
            &[(0, 0x2000), (0x4000, 0x8000)],
        );
        check(&[(0, 0x8000)], &[]);
    }

    #[test]
    fn odd_areas_of_the_kernel_are_rounded_inwards_and_used_once() {
        let odd = region(
            0x4800,
            &[(0x1800, 0x9000), (0x10, 0x1000), (0x2000, 0x3000)],
        );
        assert_eq!(mappable_areas(&odd, &[]), [0x2000..0x4000]);
        assert!(mappable_areas(&region(0x100, &[(0, 0x100)]), &[]).is_empty());
        assert!(mappable_areas(&region(0x1000, &[]), &[]).is_empty());
    }

    proptest! {
        #[test]
        fn areas_are_pages_inside_the_region_and_outside_of_traps(
            size in 0..0x2_0000u64,
            mappable in proptest::collection::vec((0..0x3_0000u64, 0..0x3_0000u64), 0..6),
            trapped in proptest::collection::vec((0..0x3_0000u64, 0..0x2000u64), 0..3),
        ) {
            let region = region(size, &mappable);
            let trapped: Vec<_> = trapped.iter().map(|&(start, len)| start..start + len).collect();
            let areas = mappable_areas(&region, &trapped);
            let mut end = 0;
            for area in areas {
                prop_assert!(area.start >= end && area.start < area.end && area.end <= size);
                prop_assert!(area.start % PAGE == 0 && area.end % PAGE == 0);
                let apart = |hole: &std::ops::Range<u64>| {
                    hole.is_empty() || hole.end <= area.start || area.end <= hole.start
                };
                prop_assert!(trapped.iter().all(apart));
                end = area.end;
            }
        }
    }
}
