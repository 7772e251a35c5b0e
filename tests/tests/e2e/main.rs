//! The end-to-end tests: one file per subject, one binary, so that the harness is linked once.
//!
//! Names that begin with `heavy_` are whole Debian systems or hundreds of instances; `.config/nextest.toml` runs them
//! one at a time.

/// Makes a test of each function for every storage driver: `overlay::name`, `btrfs::name`.
macro_rules! for_each_driver {
    ($($name:ident),+ $(,)?) => {
        mod overlay {
            $(#[test]
            fn $name() {
                super::$name("overlay");
            })+
        }
        mod btrfs {
            $(#[test]
            fn $name() {
                super::$name("btrfs");
            })+
        }
        mod zfs {
            $(#[test]
            #[ignore = "needs ZFS in the kernel, which the test host has"]
            fn $name() {
                super::$name("zfs");
            })+
        }
    };
}

mod adoption;
mod api;
mod autostart;
mod cli;
mod clients;
mod conflict;
mod console;
mod crash;
mod debian;
mod devices;
mod exec;
mod files;
mod front_door;
mod full_disk;
mod harness;
mod hostile;
mod images;
mod inventory;
mod lifecycle;
mod limits;
mod model;
mod network;
mod profiles;
mod security;
mod snapshots;
mod state;
mod storage;
mod tidy;
mod traces;
mod updates;
mod vm;
