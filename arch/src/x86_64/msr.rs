//! Model specific registers: values at boot, which ones a snapshot holds, and the order to write them back in.
//!
//! Intel SDM volume 4 and `Documentation/virt/kvm/x86/msr.rst`. KVM names the registers that make up a vCPU's state
//! (`KVM_GET_MSR_INDEX_LIST`); the list is corrected here in both directions. `vmm` reads and writes them.

use kvm_bindings::kvm_msr_entry;

/// Time stamp counter.
pub const IA32_TSC: u32 = 0x10;
/// KVM wall clock, old number.
pub const KVM_WALL_CLOCK: u32 = 0x11;
/// KVM system time (kvmclock), old number.
pub const KVM_SYSTEM_TIME: u32 = 0x12;
/// Local APIC base and mode.
pub const IA32_APIC_BASE: u32 = 0x1b;
/// Offset the guest added to its time stamp counter.
pub const IA32_TSC_ADJUST: u32 = 0x3b;
/// Miscellaneous processor features.
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
/// First of the variable range MTRRs, base and mask in turn.
pub const IA32_MTRR_PHYS_BASE0: u32 = 0x200;
/// Default memory type of the MTRRs.
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// First of the VMX capability registers.
pub const IA32_VMX_BASIC: u32 = 0x480;
/// Last of the VMX capability registers.
pub const IA32_VMX_VMFUNC: u32 = 0x491;
/// Deadline of the local APIC timer.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// First of the registers that mirror the local APIC in x2APIC mode.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last of the registers that mirror the local APIC in x2APIC mode.
pub const X2APIC_LAST: u32 = 0x8ff;
/// First number that belongs to Hyper-V enlightenments.
pub const HYPERV_FIRST: u32 = 0x4000_0000;
/// Last number that belongs to Hyper-V enlightenments.
pub const HYPERV_LAST: u32 = 0x4000_0fff;
/// KVM wall clock.
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// KVM system time (kvmclock).
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// Last of KVM's own registers.
pub const KVM_LAST: u32 = 0x4b56_4dff;

/// Most entries that `KVM_GET_MSRS` and `KVM_SET_MSRS` take in one call.
pub const MAX_PER_CALL: usize = 255;
/// Most registers a saved vCPU can hold; a snapshot with more is damaged.
pub const MAX_SAVED: usize = 1024;

const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
const MTRR_ENABLE: u64 = 1 << 11;
const MEMORY_TYPE_WRITE_BACK: u64 = 6;
/// Pairs of variable MTRRs that KVM models.
const VARIABLE_MTRRS: u32 = 8;
const FIXED_MTRRS: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// What firmware would have set. The same on every vCPU: Linux warns when MTRRs differ.
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    [
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MEMORY_TYPE_WRITE_BACK),
    ]
    .into_iter()
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    })
    .collect()
}

/// The registers to save, given what `KVM_GET_MSR_INDEX_LIST` returns: sorted, each once, at most [`MAX_SAVED`].
///
/// A register may still fail to read (KVM lists what some vCPU could have); it is then not part of the state.
pub fn save_list(host_index_list: &[u32]) -> Vec<u32> {
    let mut list: Vec<u32> = host_index_list
        .iter()
        .copied()
        .filter(|&index| is_saved(index))
        .chain(mtrrs())
        .collect();
    list.sort_unstable();
    list.dedup();
    list.truncate(MAX_SAVED);
    list
}

fn is_saved(index: u32) -> bool {
    match index {
        // A write makes KVM fill in a structure in guest memory, which the guest may long use for something else.
        // Guests write the register again whenever they want to know.
        KVM_WALL_CLOCK | KVM_WALL_CLOCK_NEW => false,
        // In kvm_sregs, where KVM checks it together with CR0 and EFER.
        IA32_APIC_BASE => false,
        // In kvm_lapic_state.
        X2APIC_FIRST..=X2APIC_LAST => false,
        // Follow from the host and from CPUID; cannot be read when the guest has no VMX.
        IA32_VMX_BASIC..=IA32_VMX_VMFUNC => false,
        // Never offered in CPUID; a write, even of zero, makes KVM allocate its Hyper-V state for the vCPU.
        HYPERV_FIRST..=HYPERV_LAST => false,
        _ => true,
    }
}

/// KVM keeps these, but has not listed them in all versions.
fn mtrrs() -> impl Iterator<Item = u32> {
    let variable = IA32_MTRR_PHYS_BASE0..IA32_MTRR_PHYS_BASE0 + 2 * VARIABLE_MTRRS;
    variable.chain(FIXED_MTRRS).chain([IA32_MTRR_DEF_TYPE])
}

/// Puts saved registers into the order to restore them in.
///
/// The time stamp counter comes after everything that does not depend on it; then what KVM computes from its value: the
/// timer deadline (armed against the counter; the local APIC must already be in place), then KVM's own registers
/// (kvmclock writes a counter value into guest memory). The order within each group stays.
pub fn restore_order(entries: &mut [kvm_msr_entry]) {
    entries.sort_by_key(|entry| match entry.index {
        IA32_TSC_ADJUST => 1,
        IA32_TSC => 2,
        IA32_TSC_DEADLINE => 3,
        KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW..=KVM_LAST => 4,
        _ => 0,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_state_but_not_what_has_side_effects() {
        let host = [
            0x174,
            IA32_TSC,
            KVM_WALL_CLOCK,
            KVM_WALL_CLOCK_NEW,
            KVM_SYSTEM_TIME_NEW,
            0x480,
            0x491,
            0x4000_0105,
        ];
        let list = save_list(&host);
        for kept in [
            0x174,
            IA32_TSC,
            KVM_SYSTEM_TIME_NEW,
            IA32_MTRR_DEF_TYPE,
            0x20f,
            0x250,
        ] {
            assert!(list.contains(&kept), "{kept:#x}");
        }
        for dropped in [
            KVM_WALL_CLOCK,
            KVM_WALL_CLOCK_NEW,
            0x480,
            0x491,
            0x4000_0105,
            0x210,
        ] {
            assert!(!list.contains(&dropped), "{dropped:#x}");
        }
    }

    #[test]
    fn save_list_has_no_duplicates_and_a_bound() {
        assert_eq!(
            save_list(&[0x174, 0x174, 0x2ff])
                .iter()
                .filter(|&&index| index == 0x2ff)
                .count(),
            1
        );
        let many: Vec<u32> = (0x1_0000..0x2_0000).collect();
        assert_eq!(save_list(&many).len(), MAX_SAVED);
    }

    #[test]
    fn restore_sets_the_deadline_after_the_counter_and_kvmclock_last() {
        let order = [
            KVM_SYSTEM_TIME_NEW,
            IA32_TSC_DEADLINE,
            0xc000_0081,
            IA32_TSC,
            0x174,
            IA32_TSC_ADJUST,
        ];
        let mut entries: Vec<_> = order
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        restore_order(&mut entries);
        let indices: Vec<u32> = entries.iter().map(|entry| entry.index).collect();
        assert_eq!(
            indices,
            [
                0xc000_0081,
                0x174,
                IA32_TSC_ADJUST,
                IA32_TSC,
                IA32_TSC_DEADLINE,
                KVM_SYSTEM_TIME_NEW
            ]
        );
    }

    #[test]
    fn boot_values_enable_fast_strings_and_write_back() {
        let msrs = boot_msrs();
        let value = |index| {
            msrs.iter()
                .find(|entry| entry.index == index)
                .map(|entry| entry.data)
        };
        assert_eq!(value(IA32_MISC_ENABLE), Some(1));
        assert_eq!(value(IA32_MTRR_DEF_TYPE), Some(0x806));
    }
}
