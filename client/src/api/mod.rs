//! The wire types of `/1.0`, shared by the daemon (which writes them) and the client (which reads them).
//!
//! The contract is Incus': field names, their order and what is left out, empty or `null` follow what its daemon
//! answers, because the unmodified `incus` CLI, pylxd and others read these bodies. Three rules hold everywhere:
//!
//! - A field absent from a body, or present as `null`, reads as the type's default; Go's decoder does the same, so
//!   its clients rely on it. Unknown fields are ignored, since newer clients send more than we know.
//! - `Option` is used only where the wire tells `null` from empty; maps are sorted, as Go prints them.
//! - Nothing is validated here. That is the daemon's work, with its table of keys at hand.
//!
//! One file per resource. [`wire!`] gives each struct its derives and the rule about `null`. With the feature `openapi`,
//! which the daemon asks for, each is also a schema of its OpenAPI document: the doc comments are its descriptions, and
//! maps are written out, since that derive does not see through an alias.

/// Declares wire structs: the usual derives, and every field reading `null` or absence as its default.
macro_rules! wire {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$fmeta:meta])* pub $field:ident : $ty:ty, )*
        }
    )+) => {$(
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(default)]
        $(#[$meta])*
        pub struct $name {
            $(
                $(#[$fmeta])*
                #[serde(deserialize_with = "crate::api::null_as_default")]
                pub $field: $ty,
            )*
        }
    )+};
}

mod cluster;
mod event;
mod extensions;
mod file;
mod image;
mod instance;
mod metadata;
mod network;
mod operation;
mod preseed;
mod profile;
mod project;
mod resources;
mod response;
mod server;
mod session;
mod snapshot;
mod state;
mod status;
mod storage;
mod timestamp;
mod warning;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

pub use cluster::*;
pub use event::*;
pub use extensions::*;
pub use file::*;
pub use image::*;
pub use instance::*;
pub use metadata::*;
pub use network::*;
pub use operation::*;
pub use preseed::*;
pub use profile::*;
pub use project::*;
pub use resources::*;
pub use response::*;
pub use server::*;
pub use session::*;
pub use snapshot::*;
pub use state::*;
pub use status::*;
pub use storage::*;
pub use timestamp::*;
pub use warning::*;

/// Configuration keys and their values, always text.
pub type ConfigMap = BTreeMap<String, String>;

/// Devices by name; each is a map of options, `type` among them.
pub type DevicesMap = BTreeMap<String, BTreeMap<String, String>>;

/// Reads `null` as the type's default.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// For fields that Go marks `omitempty`: true when the value is its type's default.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
