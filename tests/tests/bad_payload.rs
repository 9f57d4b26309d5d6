//! Kernels, initramfs and command lines that cannot be loaded are refused at once, and name what is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_tests::exit::refused;
use dormouse_tests::{VmConfig, kvm_guest};
use serde_json::json;
use tempfile::TempDir;

/// Refuses a kernel with the given content, naming its path.
fn refuses_kernel(dir: &TempDir, name: &str, content: &[u8]) {
    let path = dir.path().join(name);
    fs::write(&path, content).expect("the kernel can be written");
    refuses_kernel_at(&path);
}

fn refuses_kernel_at(path: &Path) {
    let exit = refused(&VmConfig::new(path, "hello"));
    eprintln!("{path:?}: {}", exit.stderr.trim_end());
    exit.assert_failure(&[path.to_str().expect("the name is text")]);
    // A bzImage is nothing but a kernel.
    let named = ["kernel", "bzImage "].map(|noun| exit.stderr.contains(noun));
    assert!(named.contains(&true), "{exit:?}");
}

/// A copy of `image` with some bytes replaced.
fn patched(image: &Path, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = fs::read(image).expect("the guest is built");
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

fn fifo(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("fifo");
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo can be run").success());
    path
}

#[test]
fn kernels_that_are_no_files() {
    if kvm_guest().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for path in ["/nonexistent/vmlinux", "/", "/dev/null", "/dev/zero", ""] {
        refuses_kernel_at(Path::new(path));
    }
    refuses_kernel_at(&fifo(&dir));
}

#[test]
fn junk_kernels() {
    if kvm_guest().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    refuses_kernel(&dir, "empty", b"");
    refuses_kernel(&dir, "byte", b"\x7f");
    refuses_kernel(&dir, "magic", b"\x7fELF");
    refuses_kernel(&dir, "text", b"#!/bin/sh\necho I am not a kernel\n");
    refuses_kernel(&dir, "zeros", &vec![0; 1 << 20]);
    let noise: Vec<u8> = (0..1 << 20)
        .map(|i: u32| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8)
        .collect();
    refuses_kernel(&dir, "noise", &noise);
}

#[test]
fn truncated_kernels() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    for image in [&guest.pvh, &guest.linux64] {
        let whole = fs::read(image).unwrap();
        for length in [10, 63, 64, 100, 200, 4096, 0x1100] {
            refuses_kernel(&dir, &format!("elf-{length}"), &whole[..length]);
        }
    }
    let whole = fs::read(&guest.bzimage).unwrap();
    for length in [0x1f0, 0x200, 0x202, 0x206, 0x250, 0x264, 1024] {
        refuses_kernel(&dir, &format!("bzimage-{length}"), &whole[..length]);
    }
}

#[test]
fn elf_files_of_another_kind() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let elf = &guest.linux64;
    refuses_kernel(&dir, "class-32", &patched(elf, 4, &[1]));
    refuses_kernel(&dir, "big-endian", &patched(elf, 5, &[2]));
    refuses_kernel(&dir, "arm", &patched(elf, 18, &[0xb7, 0]));
    refuses_kernel(&dir, "no-segments", &patched(elf, 56, &[0, 0]));
    refuses_kernel(&dir, "entry-nowhere", &patched(elf, 24, &[0xff; 8]));
}

#[test]
fn elf_segments_outside_of_memory() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    // The first program header: offset at 8, physical address at 24, file size at 32, memory size at 40.
    let segment =
        |field: usize, value: u64| patched(&guest.linux64, 64 + field, &value.to_le_bytes());
    refuses_kernel(&dir, "above-ram", &segment(24, 1 << 30));
    refuses_kernel(&dir, "wraps", &segment(24, u64::MAX - 4096));
    refuses_kernel(&dir, "offset-beyond-file", &segment(8, 1 << 40));
    refuses_kernel(&dir, "longer-than-file", &segment(32, 1 << 20));
    refuses_kernel(&dir, "bss-beyond-ram", &segment(40, 1 << 40));
    refuses_kernel(&dir, "bss-wraps", &segment(40, u64::MAX));
}

#[test]
fn bzimages_that_cannot_start_in_64_bit_mode() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    refuses_kernel(
        &dir,
        "old-protocol",
        &patched(&guest.bzimage, 0x206, &[0, 1]),
    );
    refuses_kernel(&dir, "loaded-low", &patched(&guest.bzimage, 0x211, &[0]));
    refuses_kernel(
        &dir,
        "no-64-bit-entry",
        &patched(&guest.bzimage, 0x236, &[0, 0]),
    );
    refuses_kernel(
        &dir,
        "setup-beyond-file",
        &patched(&guest.bzimage, 0x1f1, &[255]),
    );
    let huge = patched(&guest.bzimage, 0x260, &u32::MAX.to_le_bytes());
    refuses_kernel(&dir, "needs-4-gib", &huge);
}

#[test]
fn initramfs_that_cannot_be_loaded() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let too_big = dir.path().join("too-big");
    fs::File::create(&too_big)
        .unwrap()
        .set_len(129 << 20)
        .unwrap();
    let absurd = dir.path().join("absurd");
    fs::File::create(&absurd).unwrap().set_len(1 << 40).unwrap();
    let fifo = fifo(&dir);
    let paths = [
        Path::new("/nonexistent/initramfs"),
        Path::new("/"),
        Path::new("/dev/zero"),
        &too_big,
        &absurd,
        &fifo,
    ];
    for image in [&guest.pvh, &guest.bzimage] {
        for path in paths {
            let exit =
                refused(&VmConfig::new(image, "initrd").set("/payload/initramfs", json!(path)));
            eprintln!("{path:?}: {}", exit.stderr.trim_end());
            exit.assert_failure(&["initramfs", path.to_str().unwrap()]);
        }
    }
}

#[test]
fn kernel_and_initramfs_that_do_not_fit_together() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initramfs");
    // Fits in 4 MiB by itself, but not beside the kernel at 1 MiB.
    fs::write(&path, vec![0; (3 << 20) - 4096]).unwrap();
    for image in [&guest.pvh, &guest.linux64, &guest.bzimage] {
        let config = VmConfig::new(image, "initrd").memory(4 << 20);
        let exit = refused(&config.set("/payload/initramfs", json!(path)));
        exit.assert_failure(&["initramfs"]);
    }
}

#[test]
fn command_line_that_is_too_long() {
    let Some(guest) = kvm_guest() else { return };
    for image in [&guest.pvh, &guest.linux64, &guest.bzimage] {
        for length in [70_000, 1 << 20] {
            let exit = refused(&VmConfig::new(image, &"x".repeat(length)));
            exit.assert_failure(&["command line"]);
            assert!(
                exit.stderr.len() < 4096,
                "the reason does not repeat the input"
            );
        }
    }
    // This bzImage says that it takes 2047.
    refused(&VmConfig::new(&guest.bzimage, &"x".repeat(2048))).assert_failure(&["command line"]);
}

#[test]
fn command_line_with_a_nul_byte() {
    let Some(guest) = kvm_guest() else { return };
    refused(&VmConfig::new(&guest.pvh, "one\0two")).assert_failure(&["cmdline"]);
}
