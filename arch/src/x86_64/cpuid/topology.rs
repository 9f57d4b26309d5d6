//! vCPU topology: how many threads, cores, dies and packages, and the APIC id each vCPU gets from that.
//!
//! Intel SDM volume 3, section 9.9: each level has a bit field in the APIC id, wide enough for its count, threads lowest.
//! Checked where a VM config enters; used by the CPUID leaves and by the MADT, which must agree.

use serde::{Deserialize, Serialize};

use crate::x86_64::layout::MAX_APIC_ID;

/// Keeps shifts defined for topologies that [`Topology::check`] refuses.
const MAX_SHIFT: u32 = u32::BITS - 1;

/// Number of units at each level inside one unit of the level above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Hardware threads of a core.
    pub threads_per_core: u32,
    /// Cores of a die.
    pub cores_per_die: u32,
    /// Dies of a package.
    pub dies_per_package: u32,
    /// Packages (sockets).
    pub packages: u32,
}

/// Why a topology cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The levels do not multiply to the number of vCPUs.
    #[error(
        "the CPU topology has {0} CPUs, but the machine has {1}",
        product,
        count
    )]
    Count {
        /// Product of all levels.
        product: u64,
        /// vCPUs of the machine.
        count: u32,
    },
    /// An APIC id would be larger than interrupts can address.
    #[error(
        "the CPU topology needs APIC id {highest}, but {MAX_APIC_ID} is the highest; \
         use counts that are powers of two, or fewer CPUs"
    )]
    ApicId {
        /// The highest APIC id.
        highest: u64,
    },
}

/// Position of a vCPU in its topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) core: u32,
    pub(super) die: u32,
}

impl Topology {
    /// One package with `count` cores of one thread.
    pub fn flat(count: u32) -> Self {
        Self {
            threads_per_core: 1,
            cores_per_die: count.max(1),
            dies_per_package: 1,
            packages: 1,
        }
    }

    /// Checks that the levels make `count` vCPUs and that their APIC ids can be addressed.
    ///
    /// # Errors
    ///
    /// The [`TopologyError`] that says which of the two it is.
    pub fn check(&self, count: u32) -> Result<(), TopologyError> {
        let levels = [
            self.threads_per_core,
            self.cores_per_die,
            self.dies_per_package,
            self.packages,
        ];
        let product = levels.iter().fold(1u64, |product, &level| {
            product.saturating_mul(u64::from(level))
        });
        if product != u64::from(count) || count == 0 {
            return Err(TopologyError::Count { product, count });
        }
        let highest = u64::from(self.packages - 1) << self.package_shift()
            | u64::from(self.id_in_package(count - 1));
        if highest > u64::from(MAX_APIC_ID) {
            return Err(TopologyError::ApicId { highest });
        }
        Ok(())
    }

    /// The APIC id of vCPU `index`. Neighbours in `index` are threads of one core.
    ///
    /// Meaningful for topologies that pass [`check`](Self::check); any other gives some number.
    pub fn apic_id(&self, index: u32) -> u32 {
        let package = index / self.threads_per_package().max(1);
        package << self.package_shift() | self.id_in_package(index)
    }

    /// The part of the APIC id below the package.
    fn id_in_package(&self, index: u32) -> u32 {
        let thread = index % self.threads_per_core.max(1);
        let Position { core, die } = self.position(index);
        thread | core << self.core_shift() | die << self.die_shift()
    }

    pub(super) fn position(&self, index: u32) -> Position {
        let core = index / self.threads_per_core.max(1);
        let die = core / self.cores_per_die.max(1);
        Position {
            core: core % self.cores_per_die.max(1),
            die: die % self.dies_per_package.max(1),
        }
    }

    /// Bits of the APIC id below the core.
    pub(super) fn core_shift(&self) -> u32 {
        bits_for(self.threads_per_core).min(MAX_SHIFT)
    }

    /// Bits of the APIC id below the die.
    pub(super) fn die_shift(&self) -> u32 {
        (self.core_shift() + bits_for(self.cores_per_die)).min(MAX_SHIFT)
    }

    /// Bits of the APIC id below the package.
    pub(super) fn package_shift(&self) -> u32 {
        (self.die_shift() + bits_for(self.dies_per_package)).min(MAX_SHIFT)
    }

    pub(super) fn threads_per_die(&self) -> u32 {
        self.threads_per_core.saturating_mul(self.cores_per_die)
    }

    pub(super) fn threads_per_package(&self) -> u32 {
        self.threads_per_die().saturating_mul(self.dies_per_package)
    }
}

/// Bits that hold the numbers below `count`.
fn bits_for(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn topology(
        threads_per_core: u32,
        cores_per_die: u32,
        dies_per_package: u32,
        packages: u32,
    ) -> Topology {
        Topology {
            threads_per_core,
            cores_per_die,
            dies_per_package,
            packages,
        }
    }

    #[test]
    fn flat_ids_are_consecutive() {
        let flat = Topology::flat(254);
        assert_eq!(flat.check(254), Ok(()));
        assert!((0..254).all(|index| flat.apic_id(index) == index));
    }

    #[test]
    fn levels_get_fields_wide_enough() {
        let odd = topology(2, 3, 1, 2);
        let ids: Vec<u32> = (0..12).map(|index| odd.apic_id(index)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        let dies = topology(1, 2, 2, 2);
        assert_eq!(dies.apic_id(7), 7);
        assert_eq!(dies.position(3), Position { core: 1, die: 1 });
    }

    #[test]
    fn unusable_topologies_are_refused() {
        assert_eq!(
            topology(1, 2, 1, 1).check(3),
            Err(TopologyError::Count {
                product: 2,
                count: 3
            })
        );
        assert_eq!(
            topology(0, 2, 1, 1).check(0),
            Err(TopologyError::Count {
                product: 0,
                count: 0
            })
        );
        assert_eq!(
            topology(1, 65, 1, 3).check(195),
            Err(TopologyError::ApicId { highest: 320 })
        );
        assert_eq!(topology(1, 255, 1, 1).check(255), Ok(()));
        assert_eq!(
            topology(2, 3, 1, 64).check(384),
            Err(TopologyError::ApicId { highest: 509 })
        );
        assert!(topology(1, 256, 1, 1).check(256).is_err());
    }

    proptest! {
        #[test]
        fn apic_ids_are_unique_and_addressable(threads in 1u32..5, cores in 1u32..17, dies in 1u32..4, packages in 1u32..5) {
            let topology = topology(threads, cores, dies, packages);
            let count = threads * cores * dies * packages;
            if topology.check(count).is_ok() {
                let ids: Vec<u32> = (0..count).map(|index| topology.apic_id(index)).collect();
                prop_assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(ids.last().is_some_and(|&id| id <= MAX_APIC_ID));
                for (index, id) in (0u32..).zip(&ids) {
                    prop_assert_eq!(id >> topology.package_shift(), index / (threads * cores * dies));
                }
            }
        }

        #[test]
        fn hostile_topologies_never_panic(threads: u32, cores: u32, dies: u32, packages: u32, count: u32, index: u32) {
            let topology = topology(threads, cores, dies, packages);
            let _ = topology.check(count);
            let _ = topology.apic_id(index);
        }
    }
}
