//! Duet's side of the wire: the types of `/1.0` in [`api`], the client in [`http`] and the `duet` command in [`cli`].

pub mod api;
pub mod cli;
pub mod doctor;
pub mod http;

pub use http::{Client, Error, Url};
