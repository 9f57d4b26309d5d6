//! Runs lab tests: packs an L1 for each, boots it, waits for its verdict, keeps its logs.
//!
//! L1 prints `LAB-RESULT pass|fail|notrun: reason` on its console; silence until the deadline is a failure.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::lab::assets::Assets;
use crate::lab::initramfs::{self, L1};
use crate::lab::iommufd_kernel::IommufdKernel;
use crate::lab::mtty;
use crate::lab::qemu::{Console, Machine};
use crate::lab::scenario::{Device, KernelKind, Scenario};
use crate::process;

const POLL: Duration = Duration::from_millis(100);
/// How long QEMU may take to end after the verdict: L1 hands out its logs in that time.
const GRACE: Duration = Duration::from_secs(20);
/// How long L1 may take to get to the test; it needs three seconds on an idle machine.
const COMES_UP: Duration = Duration::from_secs(45);
/// How often L1 is booted until it comes up.
const ATTEMPTS: u32 = 3;
/// What a kernel says when it runs into the breakpoint under which it patches code and finds nobody patching.
const STALE_CODE: &str = "Oops: int3";
/// What dormouse says of a guest whose CPU has lost its way. Seen twice while a second CPU started: with QEMU 7.2, and with QEMU 10 under a
/// load of seven on two cores. That the emulation is at fault is a guess, so a repeated run says what it was repeated for.
const TRIPLE_FAULT: &str = "the guest caused a triple fault";
/// What a kernel says when it stops by its own decision.
const PANIC: &str = "Kernel panic";
/// What L1's init prints right before the test.
const BEGIN: &str = "LAB-BEGIN";
/// Modules of every L1 on the distribution's kernel.
const L1_MODULES: [&str; 6] = [
    "kvm-amd",
    "vfio_iommu_type1",
    "vfio-pci",
    "tun",
    "vhost_net",
    "mdev",
];

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail(String),
    NotRun(String),
}

impl Verdict {
    /// The verdict in what a test printed, if its line is complete.
    pub fn find(text: &str) -> Option<Verdict> {
        let (_, rest) = text.split_once("LAB-RESULT ")?;
        let (line, _) = rest.split_once('\n')?;
        let (word, reason) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
        let reason = reason.trim().to_string();
        Some(match word {
            "pass" => Verdict::Pass,
            "notrun" => Verdict::NotRun(reason),
            _ => Verdict::Fail(if reason.is_empty() {
                "no reason given".to_string()
            } else {
                reason
            }),
        })
    }
}

/// What tests run on.
pub struct Bench<'a> {
    pub assets: &'a Assets,
    /// The second kernel, when it has been built.
    pub iommufd: Option<&'a IommufdKernel>,
    /// The lab's sources.
    pub sources: &'a Path,
    /// The binary under test.
    pub binary: Option<&'a Path>,
    /// Every deadline is multiplied by this.
    pub patience: f64,
    /// Lines of the console to pass on as they come, for the demo.
    pub narrate: Option<&'a str>,
}

impl Bench<'_> {
    /// Runs one test to its verdict.
    pub fn run(&self, scenario: &Scenario) -> Result<Verdict, Error> {
        let logs = self.assets.logs(&scenario.name);
        if logs.exists() {
            fs::remove_dir_all(&logs).map_err(Error::file("remove", &logs))?;
        }
        fs::create_dir_all(&logs).map_err(Error::file("create", &logs))?;
        let Some((kernel, modules)) = self.kernel(scenario)? else {
            return Ok(Verdict::NotRun(
                "the iommufd kernel is only built with --full".to_string(),
            ));
        };
        let initramfs = logs.join("l1.cpio");
        self.pack(scenario, &modules, &initramfs)?;
        for attempt in 1..=ATTEMPTS {
            if let Some(verdict) = self.attempt(scenario, &kernel, &initramfs, &logs)? {
                self.tidy(&logs, &verdict);
                return Ok(verdict);
            }
            println!("lab: {:20} the emulation failed; once more", scenario.name);
            self.set_aside(&logs, attempt)?;
        }
        Ok(Verdict::Fail(format!(
            "the emulation failed in {ATTEMPTS} attempts: L1 did not come up, ran stale code, or died without a word, or L2 met a triple fault"
        )))
    }

    /// Boots L1 once. No verdict when L1 died before it got to the test, or without a word, or met a breakpoint of its own kernel:
    /// emulated CPUs now and then run a stale copy of code that a kernel has just patched, which says nothing about the test.
    fn attempt(
        &self,
        scenario: &Scenario,
        kernel: &Path,
        initramfs: &Path,
        logs: &Path,
    ) -> Result<Option<Verdict>, Error> {
        let (console, handout) = (logs.join("console.log"), logs.join("handout.tar"));
        let words = format!(
            "lab_test={} lab_patience={}",
            scenario.name,
            self.patience.ceil()
        );
        let machine = Machine {
            emulator: &self.assets.emulator,
            kernel,
            initramfs,
            words: &words,
            memory_mib: scenario.memory_mib,
            vcpus: scenario.vcpus,
            devices: &scenario.devices,
            scratch: logs,
            console: Console::Files {
                console: &console,
                handout: &handout,
            },
        };
        let mut command = machine.command()?;
        let errors = logs.join("qemu.log");
        let errors = File::create(&errors).map_err(Error::file("create", &errors))?;
        command.stdin(Stdio::null()).stderr(errors);
        let qemu = command
            .spawn()
            .map_err(|source| process::start_error(&command, source))?;
        let timeout = Duration::from_secs(scenario.timeout_s).mul_f64(self.patience);
        Ok(self.watch(Running(qemu), &console, timeout))
    }

    /// Packs an L1 for this scenario at `to`.
    pub fn pack(&self, scenario: &Scenario, modules: &[PathBuf], to: &Path) -> Result<(), Error> {
        let files: Vec<(String, PathBuf)> = scenario
            .files
            .iter()
            .map(|name| (format!("/lab/{name}"), self.assets.directory.join(name)))
            .collect();
        let script = scenario
            .script
            .is_file()
            .then_some(scenario.script.as_path());
        let l1 = L1 {
            binary: self.binary,
            script,
            modules,
            files: &files,
        };
        initramfs::pack_l1(self.assets, self.sources, &l1, to)
    }

    /// The kernel a scenario boots and the modules it loads, in order.
    pub fn kernel(&self, scenario: &Scenario) -> Result<Option<(PathBuf, Vec<PathBuf>)>, Error> {
        let of_scenario = |mtty: &mtty::Modules| {
            if scenario.devices.contains(&Device::MttyMsi) {
                mtty.with_msi.clone()
            } else {
                mtty.plain.clone()
            }
        };
        match scenario.kernel {
            KernelKind::Debian => {
                let extra = scenario.modules.iter().map(String::as_str);
                let names: Vec<&str> = L1_MODULES.into_iter().chain(extra).collect();
                let mut modules = self.assets.modules.load_order(&names)?;
                modules.push(of_scenario(&self.assets.mtty));
                Ok(Some((self.assets.vmlinuz.clone(), modules)))
            }
            KernelKind::Iommufd => Ok(self.iommufd.map(|kernel| {
                let modules = vec![kernel.mdev.clone(), of_scenario(&kernel.mtty)];
                (kernel.image.clone(), modules)
            })),
        }
    }

    fn watch(&self, mut qemu: Running, console: &Path, timeout: Duration) -> Option<Verdict> {
        let start = Instant::now();
        let mut narrated = 0;
        loop {
            // Asked first, so that what is read below is all there is when QEMU has ended.
            let ended = qemu.ended();
            let text = fs::read(console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            narrated = self.narrate(&text, narrated);
            if let Some(verdict) = Verdict::find(&text) {
                qemu.finish(GRACE);
                let emulation = [STALE_CODE, TRIPLE_FAULT];
                let sign = emulation.iter().find(|sign| text.contains(**sign));
                let lost = sign.is_some();
                if let (Some(sign), Verdict::Fail(_)) = (sign, &verdict) {
                    println!("lab: a run that failed says \"{sign}\"");
                }
                return (!lost || verdict == Verdict::Pass).then_some(verdict);
            }
            if text.contains(STALE_CODE) {
                return None;
            }
            let begun = text.contains(BEGIN);
            if ended || !begun && start.elapsed() > COMES_UP.mul_f64(self.patience) {
                let last = format!(
                    "L1 ended without a verdict; last line: {}",
                    last_line(&text)
                );
                // A kernel that had no time for a word probably met a triple fault; no process in L1 should be able to cause that.
                let silent = ended && !text.contains(PANIC);
                return (begun && !silent).then_some(Verdict::Fail(last));
            }
            if start.elapsed() > timeout {
                let last = last_line(&text);
                return Some(Verdict::Fail(format!(
                    "no verdict within {timeout:?}; last line: {last}"
                )));
            }
            thread::sleep(POLL);
        }
    }

    /// Prints the complete lines behind the first `already` that carry the narrator's mark.
    fn narrate(&self, text: &str, already: usize) -> usize {
        let Some(mark) = self.narrate else { return 0 };
        let complete = text.matches('\n').count();
        for line in text.lines().take(complete).skip(already) {
            if let Some((_, told)) = line.trim_end().split_once(mark) {
                println!("{}", told.strip_prefix(' ').unwrap_or(told));
            }
        }
        complete
    }

    /// Keeps what a failed attempt left, which the next one would overwrite, in a directory of its own.
    fn set_aside(&self, logs: &Path, attempt: u32) -> Result<(), Error> {
        let aside = logs.join(format!("attempt{attempt}"));
        fs::create_dir_all(&aside).map_err(Error::file("create", &aside))?;
        for name in ["console.log", "qemu.log", "handout.tar"] {
            let from = logs.join(name);
            if from.exists() {
                fs::rename(&from, aside.join(name)).map_err(Error::file("move", &from))?;
            }
        }
        Ok(())
    }

    /// Keeps logs; the large files are only of use when something has to be looked into.
    fn tidy(&self, logs: &Path, verdict: &Verdict) {
        let mut tar = Command::new("tar");
        tar.arg("--extract")
            .arg("--file")
            .arg(logs.join("handout.tar"))
            .arg("--directory")
            .arg(logs);
        let unpacked = process::capture(&mut tar).is_ok_and(|output| output.status.success());
        let mut litter = vec!["nvme0.img", "nvme1.img", "ahci0.img"];
        if unpacked {
            litter.push("handout.tar");
        }
        if !matches!(verdict, Verdict::Fail(_)) {
            litter.push("l1.cpio");
        }
        for name in litter {
            // Most runs have no such file, and a leftover does no harm.
            let _ = fs::remove_file(logs.join(name));
        }
    }
}

/// The devices that a shell gets: all of them, so that a person can try things.
pub const ALL_DEVICES: [Device; 4] = [Device::Nvme, Device::Ahci, Device::E1000e, Device::Mtty];

/// A process that does not outlive its test.
pub struct Running(Child);

impl Running {
    /// Takes charge of a child.
    pub fn new(child: Child) -> Running {
        Running(child)
    }

    /// Has it ended?
    pub fn ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }

    fn finish(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        while !self.ended() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error here means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn last_line(text: &str) -> &str {
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_needs_a_complete_line() {
        assert_eq!(Verdict::find("boot\nLAB-RESULT pass"), None);
        assert_eq!(
            Verdict::find("boot\r\nLAB-RESULT pass\r\nmore"),
            Some(Verdict::Pass)
        );
        assert_eq!(
            Verdict::find("[1.0] LAB-RESULT notrun: no kvm\r\n"),
            Some(Verdict::NotRun("no kvm".into()))
        );
        assert_eq!(
            Verdict::find("LAB-RESULT fail: a: b\n"),
            Some(Verdict::Fail("a: b".into()))
        );
        assert_eq!(
            Verdict::find("LAB-RESULT garbage\n"),
            Some(Verdict::Fail("no reason given".into()))
        );
    }
}
