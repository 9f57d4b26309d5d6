//! Sleep and wake of whole machines: real KVM, real snapshot directories, and scripted devices in place of VFIO's.
//!
//! The devices, their fake hosts and the lines of the VMM's own trace log all go into one record (`record`), so that a test
//! asserts the order of everything that matters across them. They live in a process of their own because the log is the
//! process's. Each test names the invariant of the table in `docs/invariants.md` that it guards.

mod failures;
mod order;
mod record;
mod refusals;
mod rig;
