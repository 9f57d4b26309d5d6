//! The host of the mlx5 tests: its virtual functions, which the environment names, and the guest that drives them.
//!
//! `DORMOUSE_MLX5_VFS` lists addresses of virtual functions that `resources/hosts/mlx5-setup.sh` has set up, separated by commas.
//! `DORMOUSE_MLX5_KERNEL` is the guest's kernel, by default the host's own; `DORMOUSE_MLX5_INITRAMFS` is its initramfs, by default
//! one that `resources/hosts/mlx5-initramfs.sh` packs for that kernel.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormouse_tests::guest::checkout;
use dormouse_tests::not_run::{kvm_available, not_run};
use dormouse_tests::{Serial, TestVm, VmConfig};
use serde_json::json;
use tempfile::TempDir;

/// The only driver that can save the state of these functions.
const DRIVER: &str = "mlx5_vfio_pci";
/// Id of the virtual function in every VM.
pub const DEVICE: &str = "net0";

/// All tests use the same virtual functions, so one runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What the tests run on.
pub struct Host {
    functions: Vec<PathBuf>,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Holds the initramfs if it was packed here.
    _scratch: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    /// This host, if it has `needed` virtual functions, else the calling test is recorded as not run.
    ///
    /// # Panics
    /// When the environment names something else than virtual functions that are set up: that is a mistake and not a property of
    /// the host.
    pub fn with_functions(needed: usize) -> Option<Self> {
        let Ok(list) = env::var("DORMOUSE_MLX5_VFS") else {
            not_run(
                "set DORMOUSE_MLX5_VFS to the addresses of virtual functions (0000:41:00.2,0000:41:00.3,0000:41:00.4) that \
                 resources/hosts/mlx5-setup.sh has set up",
            );
            return None;
        };
        let functions: Vec<_> = addresses(&list).map(function).collect();
        if functions.len() < needed {
            not_run(&format!(
                "DORMOUSE_MLX5_VFS must name {needed} virtual functions, not {}",
                functions.len()
            ));
            return None;
        }
        if let Err(reason) = kvm_available() {
            not_run(&reason);
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = tempfile::tempdir().expect("a temporary directory can be made");
        let kernel = env::var_os("DORMOUSE_MLX5_KERNEL").map_or_else(own_kernel, PathBuf::from);
        let initramfs = env::var_os("DORMOUSE_MLX5_INITRAMFS").map_or_else(
            || pack_initramfs(&kernel, &scratch.path().join("mlx5.cpio")),
            PathBuf::from,
        );
        Some(Self {
            functions,
            kernel,
            initramfs,
            _scratch: scratch,
            _alone: alone,
        })
    }

    /// How many virtual functions there are.
    pub fn count(&self) -> usize {
        self.functions.len()
    }

    /// Starts a guest that owns virtual function `index` and gives it the IP address `address`.
    pub fn start(&self, index: usize, address: &str) -> TestVm {
        let cmdline = format!("console=ttyS0 quiet panic=-1 address={address}");
        let config = VmConfig::new(&self.kernel, &cmdline)
            .cpus(2)
            .memory(1 << 30)
            .serial(Serial::Tty)
            .with_api()
            .set("/payload/initramfs", json!(self.initramfs))
            .set(
                "/devices",
                json!([{ "id": DEVICE, "path": self.functions[index] }]),
            );
        TestVm::start(&config)
    }

    /// Wakes a snapshot on virtual function `index`.
    pub fn wake(&self, snapshot: &Path, index: usize) -> TestVm {
        let device = format!("{DEVICE}={}", self.functions[index].display());
        TestVm::restore(snapshot, &["--resume", "--device", &device])
    }
}

fn addresses(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
}

/// The directory of a virtual function that is ready for the tests.
fn function(address: &str) -> PathBuf {
    let directory = Path::new("/sys/bus/pci/devices").join(address);
    let driver = fs::read_link(directory.join("driver")).ok();
    assert!(
        driver.is_some_and(|driver| driver.ends_with(DRIVER)),
        "{address} of DORMOUSE_MLX5_VFS is not bound to {DRIVER}; run resources/hosts/mlx5-setup.sh"
    );
    directory
}

fn own_kernel() -> PathBuf {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel has a release");
    Path::new("/boot").join(format!("vmlinuz-{}", release.trim()))
}

fn pack_initramfs(kernel: &Path, to: &Path) -> PathBuf {
    let output = Command::new(checkout().join("resources/hosts/mlx5-initramfs.sh"))
        .args([kernel, to])
        .output()
        .expect("the script can be started");
    assert!(
        output.status.success(),
        "no initramfs for {}: {}",
        kernel.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    to.to_owned()
}

#[test]
fn addresses_are_separated_by_commas() {
    let list: Vec<_> = addresses("0000:41:00.2, 0000:41:00.3,").collect();
    assert_eq!(list, ["0000:41:00.2", "0000:41:00.3"]);
    assert_eq!(addresses("").count(), 0);
}
