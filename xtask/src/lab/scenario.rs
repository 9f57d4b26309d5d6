//! A lab test is a shell script for L1 whose head says what it needs, one `# key: value` line each:
//!
//! ```text
//! # about: one line for people
//! # devices: nvme mtty            QEMU devices behind L1's IOMMU; mtty is the kernel's sample device, mtty-msi too
//! # memory: 3072                  MiB of L1
//! # smp: 2                        vCPUs of L1
//! # timeout: 120                  seconds, before --patience
//! # kernel: debian iommufd        one run on each; iommufd, the second L1 kernel, only with --full
//! # files: vmlinux                further files at /lab/NAME
//! # modules: nvme                 further modules of L1
//! # full: yes                     only with --full
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Which kernel L1 boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// The distribution's: VFIO groups and type1 containers.
    Debian,
    /// Our own small build: iommufd, VFIO cdevs and debugfs.
    Iommufd,
}

/// Something that QEMU or L1's kernel provides to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// An NVMe disk of 64 MiB.
    Nvme,
    /// A second NVMe disk.
    Nvme2,
    /// An AHCI controller, which has MSI and no MSI-X, with a disk of 64 MiB.
    Ahci,
    /// A network card with several MSI-X vectors.
    E1000e,
    /// The sample mediated device.
    Mtty,
    /// The same, showing guests its MSI.
    MttyMsi,
}

impl Device {
    /// Does QEMU provide it, and not L1's kernel?
    pub fn is_emulated(self) -> bool {
        !matches!(self, Device::Mtty | Device::MttyMsi)
    }
}

/// A test script and what its head asks for.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub script: PathBuf,
    pub about: String,
    pub devices: Vec<Device>,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub timeout_s: u64,
    pub kernel: KernelKind,
    /// Further kernels, each one more run.
    also_on: Vec<KernelKind>,
    pub files: Vec<String>,
    pub modules: Vec<String>,
    pub full: bool,
}

impl Scenario {
    /// Reads the head of a script.
    pub fn read(script: &Path) -> Result<Scenario, Error> {
        let text = fs::read_to_string(script).map_err(Error::file("read", script))?;
        Scenario::parse(script, &text)
    }

    fn parse(script: &Path, text: &str) -> Result<Scenario, Error> {
        let name = script
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut scenario = Scenario {
            name,
            script: script.into(),
            about: String::new(),
            devices: Vec::new(),
            memory_mib: 2048,
            vcpus: 2,
            timeout_s: 120,
            kernel: KernelKind::Debian,
            also_on: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            full: false,
        };
        for (index, line) in text.lines().enumerate() {
            let Some(comment) = line.strip_prefix('#') else {
                break;
            };
            let Some((key, value)) = comment
                .strip_prefix(' ')
                .and_then(|rest| rest.split_once(": "))
            else {
                continue;
            };
            scenario
                .set(key, value.trim())
                .map_err(|reason| Error::Header {
                    path: script.into(),
                    line: index + 1,
                    reason,
                })?;
        }
        Ok(scenario)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || {
            value
                .parse()
                .map_err(|_| format!("`{key}` takes a number, not `{value}`"))
        };
        match key {
            "about" => self.about = value.to_string(),
            "devices" => {
                self.devices = value
                    .split_whitespace()
                    .map(device)
                    .collect::<Result<_, _>>()?
            }
            "memory" => self.memory_mib = number()?,
            "smp" => self.vcpus = number()?,
            "timeout" => self.timeout_s = number()?.into(),
            "kernel" => {
                let mut kernels = value
                    .split_whitespace()
                    .map(kernel)
                    .collect::<Result<Vec<_>, _>>()?;
                if kernels.is_empty() {
                    return Err("`kernel` names no kernel".to_string());
                }
                self.kernel = kernels.remove(0);
                self.also_on = kernels;
            }
            "files" => self.files = value.split_whitespace().map(str::to_string).collect(),
            "modules" => self.modules = value.split_whitespace().map(str::to_string).collect(),
            "full" => self.full = value == "yes",
            other => return Err(format!("there is no key `{other}`")),
        }
        Ok(())
    }

    /// This run and those on further kernels, which have the kernel's name behind an `@`.
    fn variants(self) -> Vec<Scenario> {
        let further = self.also_on.iter().map(|kernel| Scenario {
            name: format!("{}@{}", self.name, format!("{kernel:?}").to_lowercase()),
            kernel: *kernel,
            ..self.clone()
        });
        let further: Vec<Scenario> = further.collect();
        std::iter::once(self).chain(further).collect()
    }

    /// Does it run only when everything is asked for?
    pub fn only_in_full(&self) -> bool {
        self.full || self.kernel == KernelKind::Iommufd
    }
}

fn kernel(name: &str) -> Result<KernelKind, String> {
    match name {
        "debian" => Ok(KernelKind::Debian),
        "iommufd" => Ok(KernelKind::Iommufd),
        other => Err(format!("there is no kernel `{other}`")),
    }
}

fn device(name: &str) -> Result<Device, String> {
    Ok(match name {
        "nvme" => Device::Nvme,
        "nvme2" => Device::Nvme2,
        "ahci" => Device::Ahci,
        "e1000e" => Device::E1000e,
        "mtty" => Device::Mtty,
        "mtty-msi" => Device::MttyMsi,
        other => return Err(format!("there is no device `{other}`")),
    })
}

/// All scripts in `directory`, by name.
pub fn all(directory: &Path) -> Result<Vec<Scenario>, Error> {
    let entries = fs::read_dir(directory).map_err(Error::file("list", directory))?;
    let mut scripts: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sh"))
        .collect();
    scripts.sort();
    let mut scenarios = Vec::new();
    for script in &scripts {
        scenarios.extend(Scenario::read(script)?.variants());
    }
    Ok(scenarios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_read_up_to_the_first_command() {
        let text = "#!/bin/sh\n# about: two things\n# devices: nvme mtty\n# memory: 4096\n. /lab/lib.sh\n# smp: 9\n";
        let scenario = Scenario::parse(Path::new("x/both.sh"), text).unwrap();
        assert_eq!(scenario.name, "both");
        assert_eq!(scenario.devices, [Device::Nvme, Device::Mtty]);
        assert_eq!((scenario.memory_mib, scenario.vcpus), (4096, 2));
        assert!(!scenario.only_in_full());
    }

    #[test]
    fn a_second_kernel_is_a_second_run_kept_for_full() {
        let scenario = Scenario::parse(Path::new("x/a.sh"), "# kernel: debian iommufd\n").unwrap();
        let runs = scenario.variants();
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["a", "a@iommufd"]);
        assert_eq!(runs[1].kernel, KernelKind::Iommufd);
        assert!(!runs[0].only_in_full() && runs[1].only_in_full());
    }

    #[test]
    fn unknown_words_are_errors_with_their_line() {
        for text in [
            "# colour: red\n",
            "# devices: gpu\n",
            "# memory: lots\n",
            "# kernel: bsd\n",
        ] {
            let error = Scenario::parse(Path::new("x.sh"), text).unwrap_err();
            assert!(error.to_string().starts_with("x.sh line 1: "), "{error}");
        }
    }
}
