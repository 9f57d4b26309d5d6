//! What the host does not give is refused at once, and named: KVM, memory, files for the serial port. What it gives less of than it
//! could is taken: open files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_tests::binary::dormouse;
use dormouse_tests::exit::{refused, refused_command};
use dormouse_tests::guest;
use dormouse_tests::not_run::not_run;
use dormouse_tests::{TestVm, VmConfig, kvm_guest};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tempfile::TempDir;

const NOBODY: u32 = 65534;

/// A directory that everybody can enter, with the binary and a good config in it.
fn public_copy() -> (TempDir, PathBuf, PathBuf) {
    let guest = guest::build().expect("the guest builds");
    let dir = tempfile::tempdir().unwrap();
    let [binary, kernel, config] =
        ["dormouse", "guest.elf", "vm.json"].map(|name| dir.path().join(name));
    fs::copy(dormouse(), &binary).unwrap();
    fs::copy(guest.pvh, &kernel).unwrap();
    fs::write(&config, VmConfig::new(&kernel, "").json().to_string()).unwrap();
    for (path, mode) in [
        (dir.path(), 0o755),
        (&binary, 0o755),
        (&kernel, 0o644),
        (&config, 0o644),
    ] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    (dir, binary, config)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a good config in a mount namespace that `mount` has changed.
fn refused_after_mount(mount: &str) {
    let (_dir, binary, config) = public_copy();
    let script = format!("{mount} && exec \"$0\" run --config \"$1\"");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--", "sh", "-c", &script])
        .arg(binary)
        .arg(config);
    refused_command(&mut command).assert_failure(&["/dev/kvm"]);
}

#[test]
fn no_dev_kvm() {
    if !is_root() {
        return not_run("hiding /dev/kvm takes root");
    }
    refused_after_mount("mount -t tmpfs none /dev");
}

#[test]
fn dev_kvm_that_is_not_kvm() {
    if !is_root() {
        return not_run("covering /dev/kvm takes root");
    }
    if !Path::new("/dev/kvm").exists() {
        return not_run("there is no /dev/kvm to cover");
    }
    refused_after_mount("mount --bind /dev/null /dev/kvm");
}

#[test]
fn no_permission_for_dev_kvm() {
    if !is_root() {
        return not_run("becoming another user takes root");
    }
    match fs::metadata("/dev/kvm") {
        Ok(kvm) if kvm.mode() & 0o006 == 0 => {}
        Ok(_) => return not_run("everybody may use /dev/kvm here"),
        Err(error) => return not_run(&format!("/dev/kvm cannot be looked at: {error}")),
    }
    let (_dir, binary, config) = public_copy();
    let mut command = Command::new(binary);
    command
        .arg("run")
        .arg("--config")
        .arg(config)
        .uid(NOBODY)
        .gid(NOBODY);
    refused_command(&mut command).assert_failure(&["/dev/kvm", "permission"]);
}

#[test]
fn kernel_that_may_not_be_read() {
    if !is_root() {
        return not_run("becoming another user takes root");
    }
    // A missing /dev/kvm is found first, and is no matter of permission.
    if kvm_guest().is_none() {
        return;
    }
    let (dir, binary, config) = public_copy();
    let kernel = dir.path().join("guest.elf");
    fs::set_permissions(&kernel, Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(binary);
    command
        .arg("run")
        .arg("--config")
        .arg(config)
        .uid(NOBODY)
        .gid(NOBODY);
    let exit = refused_command(&mut command);
    // Without a right to KVM either, that may be found first.
    let names_kernel = exit.stderr.contains("guest.elf");
    exit.assert_failure(&[
        if names_kernel { "kernel" } else { "/dev/kvm" },
        "permission",
    ]);
}

#[test]
fn more_memory_than_the_host_can_map() {
    let Some(guest) = kvm_guest() else { return };
    for flag in ["prefault", "reserve", "hugepages"] {
        let config = VmConfig::new(&guest.pvh, "")
            .memory(1 << 44)
            .set(&format!("/memory/{flag}"), json!(true));
        let exit = refused(&config);
        eprintln!("{flag}: {}", exit.stderr.trim_end());
        exit.assert_failure(&["memory"]);
    }
}

#[test]
fn serial_files_that_cannot_be_written() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "").unwrap();
    let below_a_file = text.join("log");
    for path in [
        Path::new("/nonexistent/log"),
        dir.path(),
        &below_a_file,
        Path::new(""),
    ] {
        let config =
            VmConfig::new(&guest.pvh, "").set("/serial", json!({ "mode": "File", "file": path }));
        let exit = refused(&config);
        eprintln!("{path:?}: {}", exit.stderr.trim_end());
        exit.assert_failure(&["serial"]);
    }
    let no_path = VmConfig::new(&guest.pvh, "").set("/serial", json!({ "mode": "File" }));
    refused(&no_path).assert_failure(&["serial", "file"]);
}

#[test]
fn serial_sockets_that_cannot_be_bound() {
    let Some(guest) = kvm_guest() else { return };
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let too_long = dir.path().join("x".repeat(120));
    for path in [
        Path::new("/nonexistent/socket"),
        dir.path(),
        &taken,
        &file,
        &too_long,
    ] {
        let config = VmConfig::new(&guest.pvh, "")
            .set("/serial", json!({ "mode": "Socket", "socket": path }));
        let exit = refused(&config);
        eprintln!("{path:?}: {}", exit.stderr.trim_end());
        exit.assert_failure(&["serial"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn few_open_files() {
    let Some(guest) = kvm_guest() else { return };
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // The VMM inherits it; the other tests here do not miss one descriptor.
    let current = Some(current.map_or(1 << 16, |current| current - 1));
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let vm = TestVm::start(&VmConfig::new(&guest.pvh, "heartbeat=5"));
    vm.expect("heartbeat 3");
    let limits = fs::read_to_string(format!("/proc/{}/limits", vm.pid())).unwrap();
    let mut lines = limits.lines();
    let files = lines
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap();
    let [soft, hard] = [0, 1].map(|at| files.split_whitespace().nth(at).unwrap());
    assert_eq!(soft, hard);
}
