//! What `make bench` measures, and how.
//!
//! Everything is measured on a test host of its own, through the shipped programs, as wall time between typing a
//! command and its end. Where Incus is installed it is measured in the same run, the two taking turns at every single
//! step, because figures are comparable with those of the same minute only: another machine, or this one an hour later,
//! has others. So a ratio means something, and an absolute figure means little without the machine's name.

pub mod breakdown;
pub mod contender;
pub mod incus;
pub mod life;
pub mod lists;
pub mod many;
pub mod sample;
pub mod table;
pub mod trace;

pub use sample::{Sample, milliseconds};
