//! A kernel image of arbitrary bytes, with an initramfs and a command line, loaded into little RAM.
//!
//! The first four bytes of the input choose the RAM, the length of the initramfs and that of the command line.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use dormouse_arch::acpi::{AcpiParams, write_acpi};
use dormouse_arch::loader::{self, BootEntry, Payload};
use dormouse_arch::{boot_params, layout};
use dormouse_fuzz::message;
use libfuzzer_sys::{Corpus, fuzz_target};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
const CMDLINE: &str = "console=ttyS0 root=/dev/ram0 rw quiet loglevel=3 acpi=force nokaslr ";

thread_local! {
    /// Files in memory that every run fills anew.
    static FILES: RefCell<[File; 2]> = RefCell::new([memory_file(), memory_file()]);
}

fn memory_file() -> File {
    memfd_create("image", MemfdFlags::CLOEXEC)
        .expect("the host has memory")
        .into()
}

fn fill(file: &mut File, bytes: &[u8]) {
    file.set_len(0).expect("a memory file can be emptied");
    file.rewind().expect("a memory file has a position");
    file.write_all(bytes).expect("the host has memory");
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&[ram, initramfs, initramfs_pages, cmdline], image)) = input.split_first_chunk()
    else {
        return Corpus::Reject;
    };
    let ram_bytes = MIB * [4, 8, 24, 32][usize::from(ram) % 4];
    let initramfs = (initramfs != 0)
        .then(|| vec![initramfs; usize::from(initramfs_pages) * 4096 + usize::from(initramfs)]);
    let cmdline = CMDLINE.repeat(usize::from(cmdline));
    FILES.with_borrow_mut(|files| {
        load_and_check(files, ram_bytes, image, initramfs.as_deref(), &cmdline);
    });
    Corpus::Keep
});

fn load_and_check(
    [kernel, disk]: &mut [File; 2],
    ram_bytes: u64,
    image: &[u8],
    initramfs: Option<&[u8]>,
    cmdline: &str,
) {
    fill(kernel, image);
    fill(disk, initramfs.unwrap_or_default());
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), ram_bytes as usize)])
        .expect("the host has memory");
    let payload = Payload {
        kernel,
        kernel_path: Path::new("/kernel"),
        initramfs: initramfs.map(|_| (disk, Path::new("/initramfs"))),
        cmdline,
    };
    match loader::load(&memory, payload) {
        Ok(entry) => check_loaded(&memory, ram_bytes, &entry, initramfs, cmdline),
        Err(error) => message::check_chain(&error),
    }
}

fn check_loaded(
    memory: &GuestMemoryMmap,
    ram_bytes: u64,
    entry: &BootEntry,
    initramfs: Option<&[u8]>,
    cmdline: &str,
) {
    assert!(entry.kernel.contains(&entry.entry.0));
    assert!(entry.kernel.start >= layout::KERNEL && entry.kernel.end <= ram_bytes);
    let read = |address, len| {
        let mut bytes = vec![0; len];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("it lies in RAM");
        bytes
    };
    assert_eq!(read(layout::CMDLINE, cmdline.len()), cmdline.as_bytes());
    assert_eq!(read(layout::CMDLINE + cmdline.len() as u64, 1), [0]);
    match (&entry.initramfs, initramfs) {
        (Some(range), Some(bytes)) => {
            assert!(range.start >= entry.kernel.end && range.end <= ram_bytes);
            assert_eq!(read(range.start, bytes.len()), bytes);
        }
        (None, None) => {}
        _ => panic!("the initramfs was forgotten or made up"),
    }
    let params = AcpiParams {
        apic_ids: &[0],
        mmio64: layout::mmio64_window(ram_bytes, 46),
        serial_port: true,
    };
    let rsdp = write_acpi(memory, &params).expect("tables have a place of their own");
    boot_params::write(memory, entry, ram_bytes, rsdp).expect("so have the boot structures");
}
