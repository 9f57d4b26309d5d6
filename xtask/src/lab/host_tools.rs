//! The programs of the machine that the lab works with. What is missing is installed through the machine's own
//! package manager; on a machine where this is not allowed, the error names the packages.

use std::path::Path;

use crate::error::Error;
use crate::lab::apt;
use crate::process;

/// Something a step needs on the machine, and the package it comes from.
struct Need {
    package: &'static str,
    present: fn() -> bool,
}

const PREPARE: [Need; 6] = [
    Need {
        package: "qemu-system-x86",
        present: || process::installed("qemu-system-x86_64"),
    },
    Need {
        package: "make",
        present: || process::installed("make"),
    },
    Need {
        package: "gcc",
        present: || process::installed("gcc"),
    },
    Need {
        package: "xz-utils",
        present: || process::installed("xz"),
    },
    Need {
        package: "zstd",
        present: || process::installed("zstd"),
    },
    // The kernel's objtool runs on every object of a module and is linked with it.
    Need {
        package: "libelf-dev",
        present: || Path::new("/usr/include/libelf.h").exists(),
    },
];

const BUILD_KERNEL: [Need; 4] = [
    Need {
        package: "flex",
        present: || process::installed("flex"),
    },
    Need {
        package: "bison",
        present: || process::installed("bison"),
    },
    Need {
        package: "bc",
        present: || process::installed("bc"),
    },
    Need {
        package: "libssl-dev",
        present: || Path::new("/usr/include/openssl/ssl.h").exists(),
    },
];

/// Makes sure that QEMU and what builds a module are there.
pub fn for_lab() -> Result<(), Error> {
    ensure(&PREPARE)
}

/// Makes sure that what builds a kernel is there.
pub fn for_kernel_build() -> Result<(), Error> {
    ensure(&BUILD_KERNEL)
}

fn ensure(needs: &[Need]) -> Result<(), Error> {
    let missing: Vec<&str> = needs
        .iter()
        .filter(|need| !(need.present)())
        .map(|need| need.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root = process::run(std::process::Command::new("id").arg("-u"))?;
    if root.trim() != "0" {
        return Err(Error::NeedsRoot {
            packages: missing.join(" "),
        });
    }
    println!("lab: installing {}", missing.join(" "));
    apt::install(&missing)
}
