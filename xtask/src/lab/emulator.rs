//! Which QEMU runs L1: the machine's own, or a newer one of the distribution unpacked below the lab's directory.
//!
//! QEMU before 8.1 can translate a page of code while another emulated CPU writes to it and keep the stale translation
//! (fixed by its commit "accel/tcg: Always lock pages before translation"). Linux patches its own code all the time, so L1 or
//! L2 then dies of an `int3` oops or a triple fault that says nothing about the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::lab::apt::{self, PrivateApt, numbers};
use crate::process;

const PROGRAM: &str = "qemu-system-x86_64";
/// The first version that locks pages before it translates them.
const GOOD: [u64; 2] = [8, 1];
/// The program and the firmware that it looks for in its own directories.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// The emulator of L1.
pub struct Emulator {
    program: PathBuf,
    firmware: Vec<PathBuf>,
}

impl Emulator {
    /// The one that was unpacked below `root`, else the machine's.
    pub fn find(root: &Path) -> Emulator {
        let unpacked = root.join("usr/bin").join(PROGRAM);
        if unpacked.is_file() {
            Emulator {
                program: unpacked,
                firmware: FIRMWARE.map(|directory| root.join(directory)).into(),
            }
        } else {
            Emulator {
                program: PROGRAM.into(),
                firmware: Vec::new(),
            }
        }
    }

    /// A command line with nothing on it yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        command
    }

    fn version(&self) -> Result<Vec<u64>, Error> {
        let text = process::run(self.command().arg("--version"))?;
        Ok(version_in(&text))
    }
}

/// Unpacks a newer QEMU below `root` when the machine's has the fault and the distribution offers one without it. Its
/// libraries are those of the machine's own QEMU; where it does not start with them, the machine's QEMU stays in use.
pub fn fetch(apt: &PrivateApt, packages: &Path, root: &Path) -> Result<(), Error> {
    if Emulator::find(root).version()?[..] >= GOOD[..] {
        return Ok(());
    }
    let Some(newest) = apt
        .versions(PACKAGES[0])?
        .into_iter()
        .max_by_key(|version| numbers(version))
        .filter(|version| upstream(version)[..] >= GOOD[..])
    else {
        println!("lab: this distribution's QEMU may run stale code; runs that end so are repeated");
        return Ok(());
    };
    println!("lab: downloading QEMU {newest}, whose emulation of several CPUs is sound");
    let mut wanted = Vec::new();
    for name in PACKAGES {
        let versions = apt.versions(name)?.into_iter();
        let version = versions.max_by_key(|version| numbers(version));
        let version = version.ok_or_else(|| Error::Missing {
            what: format!("package {name}"),
            searched: root.into(),
        })?;
        wanted.push(format!("{name}={version}"));
    }
    apt.download(&wanted, packages)?;
    for name in PACKAGES {
        let package = apt::downloaded(packages, name)?;
        apt::unpack(&package, root)?;
        fs::remove_file(&package).map_err(Error::file("remove", &package))?;
    }
    if let Err(error) = Emulator::find(root).version() {
        crate::error::print_chain(&error);
        println!("lab: it does not start here; the machine's own QEMU runs the lab");
        let program = root.join("usr/bin").join(PROGRAM);
        fs::remove_file(&program).map_err(Error::file("remove", &program))?;
    }
    Ok(())
}

/// `QEMU emulator version 10.0.2 (Debian …)`.
fn version_in(text: &str) -> Vec<u64> {
    let (_, rest) = text.split_once("version ").unwrap_or(("", ""));
    numbers(rest.split_whitespace().next().unwrap_or_default())
}

/// The upstream part of a package's version: `1:10.0.2+ds-2` is 10, 0, 2.
fn upstream(version: &str) -> Vec<u64> {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    numbers(version.split(['+', '-', '~']).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let said = version_in("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright");
        assert_eq!(said, [7, 2, 22]);
        assert!(said[..] < GOOD[..]);
        assert!(upstream("1:10.0.2+ds-2+deb13u1~bpo12+1")[..] >= GOOD[..]);
        assert!(upstream("1:8.2.2+ds-0ubuntu1.10")[..] >= GOOD[..]);
        assert!(upstream("1:7.2+dfsg-7+deb12u18")[..] < GOOD[..]);
        assert!(numbers("1:10.0.2+ds-2") > numbers("1:7.2+dfsg-7+deb12u18"));
    }
}
