//! Duet's side of the wire: the types of `/1.0` in [`api`].

pub mod api;
