//! Registers the boot CPU is entered with, and the descriptor table behind them.
//!
//! Linux 64-bit protocol: `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol" (long mode, paging on, RSI = zero
//! page). PVH: Xen `docs/misc/pvh.pandoc` (32-bit protected mode, paging off, EBX = start info). Only the boot CPU gets
//! these; KVM keeps the others waiting for a startup IPI. Called by `vmm` for vCPU 0 of a machine that boots.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::x86_64::layout::{BOOT_STACK_TOP, GDT, GDT_SIZE, PML4, PVH_START_INFO, ZERO_PAGE};
use crate::x86_64::loader::{BootEntry, Protocol};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS always reads as one; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors that the Linux boot protocol prescribes (`__BOOT_CS`, `__BOOT_DS`); PVH leaves them open.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const TYPE_DATA_RW_ACCESSED: u8 = 0x3;
const TYPE_CODE_RX_ACCESSED: u8 = 0xb;
const TYPE_TSS_BUSY: u8 = 0xb;
/// Size of a task state segment, less one.
const TSS_LIMIT: u32 = 0x67;

/// General registers of the boot CPU.
pub fn regs(boot: &BootEntry) -> kvm_regs {
    let mut regs = kvm_regs {
        rip: boot.entry.0,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match boot.protocol {
        Protocol::Linux64 => {
            regs.rsi = ZERO_PAGE;
            regs.rsp = BOOT_STACK_TOP;
            regs.rbp = BOOT_STACK_TOP;
        }
        Protocol::Pvh => regs.rbx = PVH_START_INFO,
    }
    regs
}

/// Changes the reset values in `sregs` to those the boot CPU is entered with. The LAPIC base is left alone.
pub fn set_sregs(sregs: &mut kvm_sregs, protocol: Protocol) {
    let data = data_segment();
    sregs.cs = code_segment(protocol);
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.tr = task_segment();
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: (gdt(protocol).len() - 1) as u16,
        ..Default::default()
    };
    // An empty interrupt table: an exception before the kernel has its own is a triple fault, hence a clean reset.
    sregs.idt = kvm_dtable::default();
    match protocol {
        Protocol::Linux64 => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = PML4;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Protocol::Pvh => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr3 = 0;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
    }
}

/// The bytes to write at [`GDT`].
pub fn gdt(protocol: Protocol) -> Vec<u8> {
    // A task state segment takes two slots in long mode; the second, the upper half of its base, is zero.
    [
        0,
        0,
        descriptor(&code_segment(protocol)),
        descriptor(&data_segment()),
        descriptor(&task_segment()),
        0,
    ]
    .into_iter()
    .flat_map(u64::to_le_bytes)
    .collect()
}

const _: () = assert!(6 * 8 <= GDT_SIZE);

/// A flat 4 GiB code segment: 64-bit for Linux, 32-bit for PVH.
fn code_segment(protocol: Protocol) -> kvm_segment {
    let long = u8::from(protocol == Protocol::Linux64);
    kvm_segment {
        l: long,
        db: 1 - long,
        ..flat_segment(CODE_SELECTOR, TYPE_CODE_RX_ACCESSED)
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        db: 1,
        ..flat_segment(DATA_SELECTOR, TYPE_DATA_RW_ACCESSED)
    }
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// VM entry demands a valid, busy task segment; nothing ever uses it.
fn task_segment() -> kvm_segment {
    kvm_segment {
        limit: TSS_LIMIT,
        selector: TASK_SELECTOR,
        type_: TYPE_TSS_BUSY,
        present: 1,
        ..Default::default()
    }
}

/// Packs a segment into its descriptor (Intel SDM volume 3, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    fn entry(protocol: Protocol) -> BootEntry {
        BootEntry {
            entry: GuestAddress(0x10_0200),
            protocol,
            ..BootEntry::default()
        }
    }

    #[test]
    fn descriptors_have_the_documented_encoding() {
        let words = |protocol| -> Vec<u64> {
            gdt(protocol)
                .chunks(8)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
                .collect()
        };
        assert_eq!(words(Protocol::Linux64)[2], 0x00af_9b00_0000_ffff);
        assert_eq!(words(Protocol::Pvh)[2], 0x00cf_9b00_0000_ffff);
        assert_eq!(words(Protocol::Pvh)[3], 0x00cf_9300_0000_ffff);
        assert_eq!(words(Protocol::Pvh)[4], 0x0000_8b00_0000_0067);
    }

    #[test]
    fn linux_starts_in_long_mode_with_the_zero_page() {
        let mut sregs = kvm_sregs {
            apic_base: 0xfee0_0900,
            ..Default::default()
        };
        set_sregs(&mut sregs, Protocol::Linux64);
        assert_eq!(
            (
                sregs.cs.l,
                sregs.cs.db,
                sregs.cs.selector,
                sregs.ss.selector
            ),
            (1, 0, 0x10, 0x18)
        );
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
            (0x8000_0011, PML4, 0x20, 0x500)
        );
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        let regs = regs(&entry(Protocol::Linux64));
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x10_0200, ZERO_PAGE, 2));
    }

    #[test]
    fn pvh_starts_in_protected_mode_with_the_start_info() {
        let mut sregs = kvm_sregs::default();
        set_sregs(&mut sregs, Protocol::Pvh);
        assert_eq!(
            (sregs.cs.l, sregs.cs.db, sregs.cr0, sregs.cr4, sregs.efer),
            (0, 1, 0x11, 0, 0)
        );
        assert_eq!((sregs.tr.limit, sregs.tr.type_), (0x67, 0xb));
        assert_eq!(regs(&entry(Protocol::Pvh)).rbx, PVH_START_INFO);
    }
}
