//! `cargo xtask lab …`: real kernels, real KVM and real VFIO drivers on any machine, under emulation.
//!
//! ```text
//! host ── QEMU, pure emulation ── L1: stock Linux, real kvm-amd, real VFIO ── dormouse ── L2: stock Linux
//! ```
//!
//! `assets` prepares what every run shares, `initramfs` packs the two archives, `qemu` makes L1's machine, `runner`
//! runs the tests of `resources/lab/tests`, which `scenario` reads.

mod apt;
mod assets;
mod binary;
mod bzimage;
mod cpio;
mod emulator;
mod host_tools;
mod initramfs;
mod iommufd_kernel;
mod kernel_package;
mod modules;
mod mtty;
mod qemu;
mod runner;
mod scenario;
mod suite;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::error::Error;
use crate::lab::iommufd_kernel::IommufdKernel;
use crate::lab::qemu::{Console, Machine};
use crate::lab::runner::ALL_DEVICES;
use crate::lab::scenario::KernelKind;
use crate::process;
use crate::workspace::Workspace;

pub use crate::lab::assets::Assets;
pub use crate::lab::runner::{Bench, Running, Verdict};
pub use crate::lab::scenario::Scenario;
pub use crate::lab::suite::{Selection, print_summary, run_suite};

/// What can be done in the lab.
#[derive(Subcommand)]
pub enum Verb {
    /// Download and build what the lab needs, once.
    Prepare,
    /// Run tests by name, or all of them.
    Test(Selection),
    /// Show the tests.
    List,
    /// A prompt in L1 with the binary and everything for L2 there; `poweroff -f` or Ctrl-A X ends it.
    Shell {
        /// Take this binary instead of building one.
        #[arg(long)]
        binary: Option<PathBuf>,
        /// Boot the iommufd kernel.
        #[arg(long)]
        iommufd: bool,
    },
    /// Build the second L1 kernel, the one with iommufd.
    Kernel,
}

/// Does what was asked for.
pub fn run(verb: Verb, workspace: &Workspace) -> Result<ExitCode, Error> {
    match verb {
        Verb::Prepare => Assets::prepare(workspace).map(|assets| {
            println!("lab: ready in {}", assets.directory.display());
            ExitCode::SUCCESS
        }),
        Verb::Test(selection) => {
            let outcomes = run_suite(workspace, &selection)?;
            print_summary(&outcomes);
            let failed = outcomes
                .iter()
                .any(|outcome| matches!(outcome.verdict, Verdict::Fail(_)));
            Ok(if failed {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            })
        }
        Verb::List => {
            for scenario in scenario::all(&workspace.lab_sources().join("tests"))? {
                let full = if scenario.only_in_full() {
                    " (--full)"
                } else {
                    ""
                };
                println!("{:24} {}{full}", scenario.name, scenario.about);
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Shell { binary, iommufd } => shell(workspace, binary, iommufd),
        Verb::Kernel => {
            let assets = Assets::prepare(workspace)?;
            let kernel = IommufdKernel::prepare(&assets, &workspace.lab_sources())?;
            println!("lab: the iommufd kernel is {}", kernel.image.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn shell(workspace: &Workspace, binary: Option<PathBuf>, iommufd: bool) -> Result<ExitCode, Error> {
    let assets = Assets::prepare(workspace)?;
    let binary = match binary {
        Some(binary) => binary,
        None => workspace.build_dormouse()?,
    };
    let sources = workspace.lab_sources();
    let second = if iommufd {
        Some(IommufdKernel::prepare(&assets, &sources)?)
    } else {
        None
    };
    let mut scenario = Scenario::read(&sources.join("shell.sh"))?;
    if iommufd {
        scenario.kernel = KernelKind::Iommufd;
    }
    let bench = Bench {
        assets: &assets,
        iommufd: second.as_ref(),
        sources: &sources,
        binary: Some(&binary),
        patience: 1.0,
        narrate: None,
    };
    let scratch = assets.directory.join("shell");
    fs::create_dir_all(&scratch).map_err(Error::file("create", &scratch))?;
    let Some((kernel, modules)) = bench.kernel(&scenario)? else {
        return Ok(ExitCode::FAILURE);
    };
    let initramfs = scratch.join("l1.cpio");
    bench.pack(&scenario, &modules, &initramfs)?;
    let machine = Machine {
        emulator: &assets.emulator,
        kernel: &kernel,
        initramfs: &initramfs,
        words: "lab_shell",
        memory_mib: scenario.memory_mib,
        vcpus: scenario.vcpus,
        devices: &ALL_DEVICES,
        scratch: &scratch,
        console: Console::Terminal,
    };
    process::run_visibly(&mut machine.command()?)?;
    Ok(ExitCode::SUCCESS)
}
