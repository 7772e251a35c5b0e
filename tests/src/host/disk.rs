//! A host whose state lies on a small disk of its own, to be filled.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{FallocateFlags, fallocate};

use super::Host;

/// What fills the disk.
const FILLER: &str = "filler";
/// The filesystem's block.
const BLOCK: usize = 4096;
/// What the filler grows by as long as there is that much.
const PIECE: u64 = 1 << 20;

impl Host {
    /// A host in which no daemon runs yet and whose `DUET_DIR` is an ext4 filesystem of this size.
    ///
    /// The filesystem is mounted in a mount namespace of the calling thread, which the host's processes come from: the
    /// test sees it, the machine does not.
    #[track_caller]
    pub fn on_disk(bytes: u64) -> Self {
        let folder = Self::folder();
        let image = folder.join("disk");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("a disk's file");
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        unshare(CloneFlags::CLONE_NEWNS).expect("unsharing the mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("making mounts private");
        let state = folder.join("state");
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&state));
        fs::remove_dir(state.join("lost+found")).expect("an empty filesystem");
        Self::stand_in(folder)
    }

    /// Fills the disk of the host's state but for `left` bytes.
    #[track_caller]
    pub fn fill_disk(&self, left: u64) {
        let path = self.state().join(FILLER);
        let mut file = OpenOptions::new().create(true).append(true).open(&path).expect("the filler");
        // In large pieces that nothing is written to, and then block by block to the last.
        let mut length = file.metadata().expect("the filler").len();
        while fallocate(&file, FallocateFlags::empty(), length, PIECE).is_ok() {
            length += PIECE;
        }
        loop {
            match file.write_all(&[0x5a; BLOCK]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("filling the disk: {error}"),
            }
        }
        file.sync_all().expect("flushing the filler");
        let length = file.metadata().expect("the filler").len();
        file.set_len(length.saturating_sub(left)).expect("leaving something");
        // What was freed can be had when the journal has it.
        file.sync_all().expect("flushing the filler");
    }

    /// Gives the room back that [`fill_disk`](Self::fill_disk) took.
    #[track_caller]
    pub fn clear_disk(&self) {
        fs::remove_file(self.state().join(FILLER)).expect("removing the filler");
        nix::unistd::syncfs(File::open(self.state()).expect("the state")).expect("flushing the disk");
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("running a program");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
