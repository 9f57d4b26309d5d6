//! What unit tests of several modules share.

use std::collections::BTreeMap;
use std::panic::resume_unwind;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// Runs `test` on a thread that the kernel gives no further threads, as on a host at its limit of processes.
pub fn without_threads(test: impl FnOnce() + Send + 'static) {
    let forbidden = std::thread::spawn(|| {
        let none = BTreeMap::from([libc::SYS_clone, libc::SYS_clone3].map(|call| (call, vec![])));
        let refuse = SeccompAction::Errno(libc::EAGAIN.unsigned_abs());
        let filter = SeccompFilter::new(none, SeccompAction::Allow, refuse, TargetArch::x86_64);
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        apply_filter(&program).unwrap();
        assert!(std::thread::Builder::new().spawn(|| ()).is_err());
        test();
    });
    forbidden
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic));
}
