//! QEMU command lines: the machine that is L1.
//!
//! Pure emulation (TCG) on any host. The emulated CPU has SVM, so L1's real `kvm-amd` runs L2; PCI devices sit behind
//! an emulated Intel IOMMU, so L1's real VFIO drivers have something to bind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::lab::emulator::Emulator;
use crate::lab::scenario::Device;

const DISK_BYTES: u64 = 64 << 20;

/// Where L1's console goes.
pub enum Console<'a> {
    /// The terminal, for a person.
    Terminal,
    /// The first serial port to the first file; what L1 hands out at its end to the second.
    Files {
        console: &'a Path,
        handout: &'a Path,
    },
}

/// One L1 machine.
pub struct Machine<'a> {
    pub emulator: &'a Emulator,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// Words added to L1's command line.
    pub words: &'a str,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub devices: &'a [Device],
    /// Where disk images are made.
    pub scratch: &'a Path,
    pub console: Console<'a>,
}

impl Machine<'_> {
    /// The command that runs it.
    pub fn command(&self) -> Result<Command, Error> {
        let mut qemu = self.emulator.command();
        qemu.args([
            "-accel",
            "tcg,thread=multi",
            "-M",
            "q35",
            "-cpu",
            "EPYC,+svm",
            "-no-reboot",
            "-nodefaults",
        ]);
        qemu.args([
            "-smp",
            &self.vcpus.to_string(),
            "-m",
            &self.memory_mib.to_string(),
        ]);
        qemu.arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs);
        let mut append = "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable".to_string();
        if self.devices.iter().any(|device| device.is_emulated()) {
            qemu.args(["-device", "intel-iommu,intremap=on"]);
            append += " intel_iommu=on";
        }
        for device in self.devices {
            self.add_device(&mut qemu, *device)?;
        }
        append = append + " " + self.words;
        qemu.arg("-append").arg(append.trim());
        qemu.args(["-display", "none"]);
        match self.console {
            Console::Terminal => qemu.args(["-serial", "mon:stdio"]),
            Console::Files { console, handout } => {
                let file = |path: &Path| format!("file:{}", path.display());
                // Registers at a CPU's reset: all that a triple fault leaves behind.
                qemu.args(["-d", "cpu_reset"]);
                qemu.args([
                    "-monitor",
                    "none",
                    "-serial",
                    &file(console),
                    "-serial",
                    &file(handout),
                ])
            }
        };
        Ok(qemu)
    }

    fn add_device(&self, qemu: &mut Command, device: Device) -> Result<(), Error> {
        match device {
            Device::Nvme => self.add_nvme(qemu, 0),
            Device::Nvme2 => self.add_nvme(qemu, 1),
            Device::Ahci => {
                qemu.args(["-device", "ich9-ahci,id=ahci0"]);
                let drive = self.drive(qemu, "ahci0")?;
                qemu.args(["-device", &format!("ide-hd,bus=ahci0.0,drive={drive}")]);
                Ok(())
            }
            Device::E1000e => {
                qemu.args([
                    "-netdev",
                    "user,id=net0,restrict=on",
                    "-device",
                    // No boot from the network, so no firmware of the card.
                    "e1000e,netdev=net0,romfile=",
                ]);
                Ok(())
            }
            Device::Mtty | Device::MttyMsi => Ok(()),
        }
    }

    fn add_nvme(&self, qemu: &mut Command, index: u32) -> Result<(), Error> {
        let drive = self.drive(qemu, &format!("nvme{index}"))?;
        let device = format!("nvme,drive={drive},serial=lab{index}");
        qemu.args(["-device", &device]);
        Ok(())
    }

    /// An empty disk in a file of this name; returns how devices refer to it.
    fn drive(&self, qemu: &mut Command, name: &str) -> Result<String, Error> {
        let image: PathBuf = self.scratch.join(format!("{name}.img"));
        let file = File::create(&image).map_err(Error::file("create", &image))?;
        file.set_len(DISK_BYTES)
            .map_err(Error::file("size", &image))?;
        let id = format!("disk-{name}");
        let drive = format!("file={},if=none,id={id},format=raw", image.display());
        qemu.args(["-drive", &drive]);
        Ok(id)
    }
}
