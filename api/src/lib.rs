//! What crosses Dormouse's boundary: the VM config, the requests and answers of the HTTP API, its server and client.
//!
//! The API is Cloud Hypervisor's, so that its clients drive Dormouse unchanged. This crate knows nothing of KVM: the
//! binary joins it to the machine.

#![forbid(unsafe_code)]

pub mod config;

pub use config::VmConfig;
