//! KVM state as plain values, read and written in the order that KVM asks for.

mod vcpu;
mod vm;

pub use vcpu::VcpuState;
pub use vm::VmState;
