//! The root filesystem as a tar archive, from which an image is made.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use duet_images::{Observer, TreeOptions, pack_tree};
use duet_sys::mount::{self, Change};
use duet_sys::process;

use crate::protocol::message::{self, ErrorKind, ErrorReply};

/// What stands before each name, as in an image.
const PREFIX: &str = "rootfs";

/// What the running system mounts filesystems of its own on. Something may lie beneath these, where nobody has seen it.
const LEFT_EMPTY: [&str; 4] = ["dev", "proc", "run", "sys"];

/// How much is written at once, in bytes: what a pipe holds (pipe(7)).
const PIECE: usize = 64 * 1024;

/// Becomes the program that writes the archive, and ends the process.
pub(super) fn run(stdout: &OwnedFd, stderr: &OwnedFd, report: &OwnedFd) -> ! {
    let root = match connect(stdout, stderr) {
        Ok(()) => rustix::stdio::stdin(),
        Err(error) => {
            let error = ErrorReply::new(ErrorKind::System, format!("the root filesystem cannot be packed: {error}"));
            // If the agent is gone there is nobody to tell.
            let _ = rustix::io::write(report, &message::encode(&error));
            process::exit_now(127)
        }
    };
    // The agent's own protects it; a kernel without it has none to undo.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    // With the report's end closed too, the agent learns that the program runs.
    // SAFETY: nothing but the standard descriptors is used from here on, and the process ends by _exit(2).
    let packed = unsafe { process::close_all_but(u32::MAX) }.map_err(|error| error.to_string()).and_then(|()| {
        process::reset_signals();
        pack(root).map_err(|error| error.to_string())
    });
    if let Err(error) = &packed {
        // As above.
        let _ = writeln!(io::stderr(), "{error}");
    }
    process::exit_now(i32::from(packed.is_err()))
}

/// Makes the standard descriptors the root filesystem, the archive and the errors.
fn connect(stdout: &OwnedFd, stderr: &OwnedFd) -> io::Result<()> {
    // A clone without what is mounted below: the filesystem itself.
    let root = mount::clone_tree(rustix::fs::CWD, Path::new("/"), false)?;
    // Read-only, so that reading does not change the times of last access. A kernel before 5.12 cannot (mount_setattr(2)).
    let _ = mount::change(&root, Change { set: mount::RDONLY, ..Change::default() });
    rustix::process::setsid()?;
    rustix::stdio::dup2_stdin(&root)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    Ok(())
}

fn pack(root: BorrowedFd<'_>) -> duet_images::Result<()> {
    let stdout = rustix::stdio::stdout().as_fd().try_clone_to_owned().map_err(duet_images::ImageError::Write)?;
    let options = TreeOptions { prefix: PREFIX, in_use: true, left_empty: &LEFT_EMPTY };
    let out = BufWriter::with_capacity(PIECE, File::from(stdout));
    pack_tree(root, &options, out, &mut Observer::none()).map(drop)
}
