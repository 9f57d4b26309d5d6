//! The OpenAPI document of the API, as the server hands it out.
//!
//! The text in `openapi.json` is made from the route table and the types; a test fails when it differs from them, and
//! rewrites it when the environment variable `UPDATE_OPENAPI` is set.

/// The document, JSON in ASCII.
pub const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests;
