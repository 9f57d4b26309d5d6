//! What crosses Dormouse's boundary: the VM config, the requests and answers of the HTTP API, its server and client.
//!
//! The API is Cloud Hypervisor's, so that its clients drive Dormouse unchanged. This crate knows nothing of KVM: the
//! binary implements [`Backend`] with the machine.

#![forbid(unsafe_code)]

pub mod config;
pub mod request;
pub mod response;

mod backend;

pub use backend::{ApiError, Backend, ErrorStatus};
pub use config::VmConfig;
pub use request::Request;
pub use response::Response;
