//! System call filters, one per thread role, on by default.
//!
//! A thread inherits the filter of the thread that starts it and the stricter of the two decides, so the main thread's list
//! contains every other one. No list allows starting a program or executable memory. `ioctl` is limited by the driver that the
//! request number names (bits 8 to 15, `include/uapi/asm-generic/ioctl.h`).
//!
//! Opening a file is an error in every thread but the main one, and no reason to be killed: the C library tries it where it can do
//! without, as when it frees memory for the first time and looks at the host's overcommit policy.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;

/// A filter that could not be built or installed.
#[derive(Debug, Error)]
pub enum Error {
    /// The list does not compile to a filter.
    #[error("cannot build the system call filter of the {role:?} threads")]
    Build {
        /// Whose filter.
        role: Role,
        /// What is wrong with it.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The kernel refused the filter.
    #[error(
        "cannot install the system call filter of the {role:?} threads; --seccomp=off runs without"
    )]
    Install {
        /// Whose filter.
        role: Role,
        /// The kernel's answer.
        #[source]
        source: seccompiler::Error,
    },
}

/// What happens on a system call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The process is killed with SIGSYS.
    #[default]
    Kill,
    /// The kernel logs it (audit log) and lets it pass.
    Log,
    /// No filter.
    Off,
}

/// The thread roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The main loop: builds machines, serves consoles, saves and restores.
    Vmm,
    /// One vCPU.
    Vcpu,
    /// The HTTP server.
    Api,
}

/// Restricts the calling thread, and all threads that it starts from now on.
///
/// # Errors
/// When the filter cannot be built or the kernel refuses it.
pub fn apply(mode: Mode, role: Role) -> Result<(), Error> {
    let mismatch = match mode {
        Mode::Off => return Ok(()),
        Mode::Kill => SeccompAction::KillProcess,
        Mode::Log => SeccompAction::Log,
    };
    let install = |program: Result<BpfProgram, seccompiler::BackendError>| {
        let program = program.map_err(|source| Error::Build { role, source })?;
        seccompiler::apply_filter(&program).map_err(|source| Error::Install { role, source })
    };
    install(program(role, mismatch.clone()))?;
    if role != Role::Vmm && mismatch == SeccompAction::KillProcess {
        install(refusal_to_open())?;
    }
    Ok(())
}

/// Fails the calls of [`OPEN`] and has no say in others. Of two filters the stricter decides, and an error is stricter than the
/// permission that [`program`] gives.
fn refusal_to_open() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = OPEN.iter().map(|call| (*call, Vec::new())).collect();
    let refusal = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refusal, TargetArch::x86_64)?.try_into()
}

fn program(role: Role, mismatch: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    let mut allow = |calls: &[i64]| {
        for call in calls {
            rules.insert(*call, Vec::new());
        }
    };
    allow(EVERY_THREAD);
    if mismatch == SeccompAction::KillProcess {
        allow(OPEN);
    }
    match role {
        Role::Vcpu => {}
        Role::Api => {
            allow(THREADS_AND_EVENTS);
            allow(SOCKETS);
        }
        Role::Vmm => {
            allow(THREADS_AND_EVENTS);
            allow(SOCKETS);
            allow(OPEN);
            allow(FILES);
        }
    }
    rules.insert(libc::SYS_mmap, vec![without_exec()?]);
    rules.insert(libc::SYS_mprotect, vec![without_exec()?]);
    rules.insert(libc::SYS_ioctl, ioctls(role)?);
    SeccompFilter::new(rules, mismatch, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// `mmap` and `mprotect`: argument 2 is the protection.
fn without_exec() -> Result<SeccompRule, seccompiler::BackendError> {
    let exec = libc::PROT_EXEC as u64;
    SeccompRule::new(vec![SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(exec),
        0,
    )?])
}

/// `ioctl`: argument 1 is the request; its second byte names the driver.
fn ioctls(role: Role) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    const KVM: u64 = 0xae;
    const VFIO_AND_IOMMUFD: u64 = b';' as u64;
    const TERMINAL: u64 = b'T' as u64;
    const USERFAULTFD: u64 = 0xaa;
    let drivers: &[u64] = match role {
        Role::Vmm => &[KVM, VFIO_AND_IOMMUFD, TERMINAL, USERFAULTFD],
        Role::Vcpu => &[KVM, VFIO_AND_IOMMUFD, TERMINAL],
        Role::Api => &[TERMINAL],
    };
    drivers
        .iter()
        .map(|driver| {
            SeccompRule::new(vec![SeccompCondition::new(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(0xff00),
                driver << 8,
            )?])
        })
        .collect()
}

/// Memory, locks, clocks, signals, reading and writing what is open: what the standard library and logging need anywhere, and
/// what a vCPU thread needs to serve a device.
const EVERY_THREAD: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Starting threads and waiting for events.
const THREADS_AND_EVENTS: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_sched_setaffinity,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// Unix sockets of the API and of consoles.
const SOCKETS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_fchmod,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// What the C library may try anywhere: only the main thread succeeds.
const OPEN: &[i64] = &[libc::SYS_open, libc::SYS_openat];

/// Opening images, devices and snapshots, and making machines out of them.
const FILES: &[i64] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_geteuid,
    // Whether the terminal of a console is ours: asked by getpgrp, with some C libraries by the other two.
    libc::SYS_getpgid,
    libc::SYS_getpgrp,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_memfd_create,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_openat2,
    libc::SYS_prlimit64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rmdir,
    libc::SYS_setpriority,
    libc::SYS_statfs,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_userfaultfd,
];

#[cfg(test)]
mod tests {
    use super::{Mode, Role, apply};
    use std::fs::File;
    use std::io::{ErrorKind, Read};

    /// Whether a process with the filter of `role` gets through `work` and finds what it expects.
    fn survives(role: Role, work: impl FnOnce() -> bool + Send + 'static) -> bool {
        // A filter cannot be taken off again and killing ends the whole process: a child process gets it.
        // SAFETY: the child only runs the filter and `work`, then leaves without unwinding into the parent's frames.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let fine = apply(Mode::Kill, role).is_ok() && work();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!fine)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made; `status` is a valid place for the answer.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }

    #[test]
    fn each_role_may_read_what_is_open_and_only_the_main_loop_may_open() {
        for role in [Role::Vmm, Role::Vcpu, Role::Api] {
            let mut zero = File::open("/dev/zero").unwrap();
            assert!(survives(role, move || zero.read(&mut [0; 8]).is_ok()));
        }
        assert!(survives(Role::Vmm, || File::open("/dev/zero").is_ok()));
    }

    #[test]
    fn opening_fails_instead_of_killing_elsewhere() {
        for role in [Role::Vcpu, Role::Api] {
            let refused = survives(role, || {
                let opened = File::open("/dev/zero");
                opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            });
            assert!(refused, "{role:?}");
            let other_way = survives(role, || {
                // SAFETY: null arguments; the filter ends the process before the kernel looks at them.
                unsafe { libc::syscall(libc::SYS_openat2, 0, 0, 0, 0) };
                true
            });
            assert!(!other_way, "{role:?}");
        }
    }

    #[test]
    fn no_role_may_start_a_program_or_map_executable_memory() {
        for role in [Role::Vmm, Role::Vcpu, Role::Api] {
            assert!(!survives(role, || {
                // SAFETY: null arguments; the filter ends the process before the kernel looks at them.
                unsafe { libc::execve(std::ptr::null(), std::ptr::null(), std::ptr::null()) };
                true
            }));
            assert!(!survives(role, || {
                let exec = libc::PROT_READ | libc::PROT_EXEC;
                let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                // SAFETY: a fresh anonymous mapping that nothing uses.
                unsafe { libc::mmap(std::ptr::null_mut(), 4096, exec, private, -1, 0) };
                true
            }));
        }
    }
}
