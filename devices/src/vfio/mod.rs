//! A PCI function passed through with VFIO: the traits it needs of the host.

pub mod host;
