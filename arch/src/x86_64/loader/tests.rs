//! Loads small hand-made images, good and bad, into 32 MiB of RAM, or 4 MiB where that is enough.

use std::io::Write;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};

use super::*;
use crate::x86_64::layout::KERNEL;

const MIB: u64 = 1 << 20;

fn ram(size: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Loads `kernel` with the given command line and initramfs.
fn boot(
    memory: &GuestMemoryMmap,
    kernel: &[u8],
    cmdline: &str,
    initramfs: Option<&[u8]>,
) -> Result<BootEntry, Error> {
    let mut kernel = file(kernel);
    let mut initramfs = initramfs.map(file);
    load(
        memory,
        Payload {
            kernel: &mut kernel,
            kernel_path: Path::new("kernel"),
            initramfs: initramfs.as_mut().map(|file| (file, Path::new("initrd"))),
            cmdline,
        },
    )
}

fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    bytes[offset..offset + field.len()].copy_from_slice(field);
}

/// The chain of messages as `main` prints it.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

struct Phdr {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// An ELF image of `phdrs` with `data` from offset 0x200 on.
fn elf(entry: u64, phdrs: &[Phdr], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 16, &2u16.to_le_bytes());
    put(&mut bytes, 18, &62u16.to_le_bytes());
    put(&mut bytes, 24, &entry.to_le_bytes());
    put(&mut bytes, 32, &64u64.to_le_bytes());
    put(&mut bytes, 54, &56u16.to_le_bytes());
    put(&mut bytes, 56, &(phdrs.len() as u16).to_le_bytes());
    for (i, phdr) in phdrs.iter().enumerate() {
        let at = 64 + i * 56;
        put(&mut bytes, at, &phdr.kind.to_le_bytes());
        put(&mut bytes, at + 8, &phdr.offset.to_le_bytes());
        put(&mut bytes, at + 24, &phdr.address.to_le_bytes());
        put(&mut bytes, at + 32, &phdr.file_size.to_le_bytes());
        put(&mut bytes, at + 40, &phdr.memory_size.to_le_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

fn note(name: &[u8; 4], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut bytes = 4u32.to_le_bytes().to_vec();
    bytes.extend((desc.len() as u32).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(name);
    bytes.extend(desc);
    bytes
}

const TEXT: Phdr = Phdr {
    kind: 1,
    offset: 0x200,
    address: KERNEL,
    file_size: 8,
    memory_size: 0x3000,
};

/// A guest with a PVH note, followed by a second note segment without one.
fn pvh_elf() -> Vec<u8> {
    let mut data = b"guest!!!".to_vec();
    data.extend(note(b"Xen\0", 18, &(KERNEL as u32 + 4).to_le_bytes()));
    data.extend(note(b"GNU\0", 5, &[0; 8]));
    let notes = Phdr {
        kind: 4,
        offset: 0x208,
        address: 0,
        file_size: 20,
        memory_size: 20,
    };
    let others = Phdr {
        kind: 4,
        offset: 0x21c,
        address: 0,
        file_size: 24,
        memory_size: 24,
    };
    elf(KERNEL, &[TEXT, notes, others], &data)
}

/// A bzImage with one setup sector and `payload` bytes, which unpacks to 16 MiB and needs 4 MiB there.
fn bzimage(payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; 1024 + payload];
    put(&mut bytes, 0x1f1, &[1]);
    put(&mut bytes, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut bytes, 0x202, b"HdrS");
    put(&mut bytes, 0x206, &0x20fu16.to_le_bytes());
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut bytes, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut bytes, 0x234, &[1]);
    put(&mut bytes, 0x236, &1u16.to_le_bytes());
    put(&mut bytes, 0x238, &2047u32.to_le_bytes());
    put(&mut bytes, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut bytes, 0x260, &(4 * MIB as u32).to_le_bytes());
    bytes[1024..].fill(0x90);
    bytes
}

#[test]
fn pvh_note_decides_even_when_another_note_segment_follows() {
    let memory = ram(4 * MIB);
    let entry = boot(&memory, &pvh_elf(), "console=ttyS0", None).unwrap();
    assert_eq!((entry.protocol, entry.entry.0), (Protocol::Pvh, KERNEL + 4));
    assert_eq!(entry.kernel, KERNEL..KERNEL + 0x3000);
    let mut text = [0; 8];
    memory.read_slice(&mut text, GuestAddress(KERNEL)).unwrap();
    assert_eq!(&text, b"guest!!!");
    let mut cmdline = [0xff; 14];
    memory
        .read_slice(&mut cmdline, GuestAddress(CMDLINE))
        .unwrap();
    assert_eq!(&cmdline, b"console=ttyS0\0");
}

#[test]
fn elf_without_note_uses_the_linux_protocol() {
    let entry = boot(&ram(4 * MIB), &elf(KERNEL + 2, &[TEXT], &[0; 8]), "", None).unwrap();
    assert_eq!(
        (entry.protocol, entry.entry.0),
        (Protocol::Linux64, KERNEL + 2)
    );
    assert!(entry.setup_header.is_none());
}

#[test]
fn initramfs_goes_to_the_end_of_ram() {
    let memory = ram(4 * MIB);
    let entry = boot(&memory, &pvh_elf(), "", Some(&[7; 5000])).unwrap();
    let range = entry.initramfs.unwrap();
    assert_eq!(range, 4 * MIB - 0x2000..4 * MIB - 0x2000 + 5000);
    assert_eq!(
        memory.read_obj::<u8>(GuestAddress(range.end - 1)).unwrap(),
        7
    );
    assert_eq!(memory.read_obj::<u8>(GuestAddress(range.end)).unwrap(), 0);
}

#[test]
fn initramfs_never_overlaps_bss() {
    let bss = Phdr {
        memory_size: 3 * MIB - 0x1000,
        ..TEXT
    };
    let image = elf(KERNEL, &[bss], &[0; 8]);
    assert!(boot(&ram(4 * MIB), &image, "", Some(&[7; 4096])).is_ok());
    let error = boot(&ram(4 * MIB), &image, "", Some(&[7; 4097])).unwrap_err();
    assert!(chain(&error).contains("4097 bytes does not fit"), "{error}");
}

#[test]
fn bzimage_is_entered_at_its_64_bit_entry() {
    let memory = ram(32 * MIB);
    let entry = boot(&memory, &bzimage(0x400), "", Some(&[1; 10])).unwrap();
    assert_eq!(
        (entry.protocol, entry.entry.0),
        (Protocol::Linux64, KERNEL + 0x200)
    );
    assert_eq!(entry.kernel, KERNEL..20 * MIB);
    assert_eq!(entry.initramfs.unwrap().start, 32 * MIB - 0x1000);
    assert_eq!(
        memory.read_obj::<u8>(GuestAddress(KERNEL + 0x3ff)).unwrap(),
        0x90
    );
    let header = entry.setup_header.unwrap();
    assert_eq!({ header.init_size }, 4 * MIB as u32);
}

#[test]
fn initramfs_respects_the_kernel_address_limit() {
    let mut image = bzimage(0x400);
    put(&mut image, 0x22c, &(24 * MIB as u32 - 1).to_le_bytes());
    let entry = boot(&ram(32 * MIB), &image, "", Some(&[1; 10])).unwrap();
    assert_eq!(entry.initramfs.unwrap().start, 24 * MIB - 0x1000);
}

#[test]
fn ram_too_small_for_unpacking_is_refused() {
    let error = boot(&ram(16 * MIB), &bzimage(0x400), "", None).unwrap_err();
    assert!(
        chain(&error).contains("up to 0x1400000, but low RAM ends at 0x1000000"),
        "{}",
        chain(&error)
    );
}

#[test]
fn command_line_limits_hold() {
    let memory = ram(32 * MIB);
    let longest = "x".repeat(2047);
    for image in [pvh_elf(), bzimage(0x400)] {
        assert!(boot(&memory, &image, &longest, None).is_ok());
        let error = boot(&memory, &image, &format!("{longest}x"), None).unwrap_err();
        assert!(matches!(
            error,
            Error::CommandLineTooLong {
                len: 2048,
                max: 2047
            }
        ));
    }
    let mut greedy = bzimage(0x400);
    put(&mut greedy, 0x238, &u32::MAX.to_le_bytes());
    let error = boot(&memory, &greedy, &"x".repeat(CMDLINE_SIZE as usize), None).unwrap_err();
    assert!(matches!(
        error,
        Error::CommandLineTooLong { max: 0xffff, .. }
    ));
    assert!(matches!(
        boot(&memory, &pvh_elf(), "a\0b", None),
        Err(Error::CommandLineNul)
    ));
}

#[test]
fn bad_bzimages_say_what_is_wrong() {
    let check = |offset: usize, field: &[u8], message: &str| {
        let mut image = bzimage(0x400);
        put(&mut image, offset, field);
        let error = boot(&ram(32 * MIB), &image, "", None).unwrap_err();
        assert!(chain(&error).contains(message), "{}", chain(&error));
    };
    check(0x1fe, &[0, 0], "boot flag");
    check(0x206, &0x20bu16.to_le_bytes(), "protocol 2.11");
    check(0x211, &[0], "zImage");
    check(0x236, &[0, 0], "64-bit entry");
    check(0x230, &[3, 0, 0, 0], "power of two");
    check(0x1f1, &[255], "truncated");
    check(0x258, &u64::MAX.to_le_bytes(), "low RAM ends");
    check(0x260, &u32::MAX.to_le_bytes(), "low RAM ends");
}

#[test]
fn bad_elf_images_say_what_is_wrong() {
    let check = |image: Vec<u8>, message: &str| {
        let error = boot(&ram(4 * MIB), &image, "", None).unwrap_err();
        assert!(chain(&error).contains(message), "{}", chain(&error));
    };
    let with = |phdr| elf(KERNEL, &[phdr], &[0; 8]);
    check(
        with(Phdr {
            address: 0x7000,
            ..TEXT
        }),
        "outside the usable RAM",
    );
    check(
        with(Phdr {
            address: 4 * MIB - 1,
            ..TEXT
        }),
        "outside the usable RAM",
    );
    check(
        with(Phdr {
            address: u64::MAX,
            ..TEXT
        }),
        "outside the usable RAM",
    );
    check(
        with(Phdr {
            file_size: 9,
            ..TEXT
        }),
        "segment 0 is invalid",
    );
    check(
        with(Phdr {
            offset: u64::MAX,
            ..TEXT
        }),
        "segment 0 is invalid",
    );
    check(
        with(Phdr {
            memory_size: 7,
            ..TEXT
        }),
        "segment 0 is invalid",
    );
    check(
        with(Phdr {
            file_size: 0,
            memory_size: 0,
            ..TEXT
        }),
        "no loadable segment",
    );
    check(elf(KERNEL - 1, &[TEXT], &[0; 8]), "entry point 0xfffff");
    let huge_note = Phdr {
        kind: 4,
        offset: 0,
        address: 0,
        file_size: 70_000,
        memory_size: 0,
    };
    check(
        elf(KERNEL, &[TEXT, huge_note], &[0; 70_000]),
        "notes are larger",
    );
    let mut other = pvh_elf();
    put(&mut other, 18, &183u16.to_le_bytes());
    check(other, "machine 183");
    let mut table = pvh_elf();
    put(&mut table, 56, &u16::MAX.to_le_bytes());
    check(table, "program header table");
    check(pvh_elf()[..64].to_vec(), "truncated");
    check(pvh_elf()[..40].to_vec(), "truncated");
}

#[test]
fn files_that_are_no_kernels_are_refused() {
    let memory = ram(4 * MIB);
    assert!(matches!(
        boot(&memory, b"", "", None),
        Err(Error::Empty { .. })
    ));
    assert!(matches!(
        boot(&memory, b"#!/bin/sh", "", None),
        Err(Error::UnknownFormat { .. })
    ));
    let mut directory = File::open("/").unwrap();
    let payload = Payload {
        kernel: &mut directory,
        kernel_path: Path::new("/"),
        initramfs: None,
        cmdline: "",
    };
    assert!(matches!(
        load(&memory, payload),
        Err(Error::NotAFile { .. })
    ));
}

#[test]
fn low_ram_ends_at_the_first_gap() {
    let regions = [
        (GuestAddress(0), 0x20_0000),
        (GuestAddress(0x20_0000), 0x1000),
        (GuestAddress(0x40_0000), 0x1000),
    ];
    assert_eq!(
        contiguous_low_ram(&GuestMemoryMmap::from_ranges(&regions).unwrap()),
        0x20_1000
    );
}

/// What must hold for every image that is accepted.
fn check_accepted(entry: &BootEntry, ram_end: u64) -> bool {
    let initramfs = entry
        .initramfs
        .clone()
        .unwrap_or(entry.kernel.end..entry.kernel.end);
    entry.kernel.start >= KERNEL
        && entry.kernel.contains(&entry.entry.0)
        && entry.kernel.end <= initramfs.start
        && initramfs.end <= ram_end
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2048), magic in 0..3) {
        let mut bytes = bytes;
        match magic {
            1 if bytes.len() > 8 => put(&mut bytes, 0, b"\x7fELF\x02\x01\x01"),
            2 if bytes.len() > 0x208 => put(&mut bytes, 0x202, b"HdrS"),
            _ => {}
        }
        let _ = boot(&ram(4 * MIB), &bytes, "", None);
    }

    #[test]
    fn mutated_images_are_loaded_inside_ram_or_refused(
        elf in any::<bool>(),
        mutations in vec((0usize..0x280, any::<u8>()), 1..6),
    ) {
        let (mut image, size) = if elf { (pvh_elf(), 4 * MIB) } else { (bzimage(0x400), 32 * MIB) };
        for (offset, byte) in mutations {
            let len = image.len();
            image[offset % len] = byte;
        }
        let memory = ram(size);
        if let Ok(entry) = boot(&memory, &image, "", Some(&[1; 100])) {
            prop_assert!(check_accepted(&entry, size), "{entry:?}");
        }
    }

    #[test]
    fn extreme_header_fields_never_panic(
        elf in any::<bool>(),
        field in 0usize..0x260,
        value in proptest::sample::select(vec![0, 1, 0xfff, 0xffff, 0x7fff_ffff, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 7, u64::MAX]),
        width in proptest::sample::select(vec![1usize, 2, 4, 8]),
    ) {
        let (mut image, size) = if elf { (pvh_elf(), 4 * MIB) } else { (bzimage(0x400), 32 * MIB) };
        let at = field.min(image.len() - width);
        put(&mut image, at, &value.to_le_bytes()[..width]);
        if let Ok(entry) = boot(&ram(size), &image, "", Some(&[1; 100])) {
            prop_assert!(check_accepted(&entry, size), "{entry:?}");
        }
    }
}
