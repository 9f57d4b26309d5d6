//! What crosses Dormouse's boundary: the VM config, the requests and answers of the HTTP API, its server and client.
//!
//! The API is Cloud Hypervisor's, so that its clients drive Dormouse unchanged. This crate knows nothing of KVM: the
//! binary implements [`Backend`] with the machine, hands it to a [`Server`], and uses [`Client`] for `dormouse ctl`.

#![forbid(unsafe_code)]

pub mod config;
pub mod openapi;
pub mod request;
pub mod response;

mod backend;
mod client;
mod reply;
mod server;

pub use backend::{ApiError, Backend, ErrorStatus};
pub use client::{Client, ClientError};
pub use config::VmConfig;
pub use reply::{PendingAnswer, Reply};
pub use request::Request;
pub use response::Response;
pub use server::{BindError, ServeError, Server, ShutdownHandle};
