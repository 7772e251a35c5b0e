//! The machine in QEMU's software emulation, of version 7.2 or later.
//!
//! All that it works on comes as descriptors; what it opens by itself is its firmware, in the root that [`super::jail`]
//! leaves it.

mod arguments;
mod qmp;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use duet_control::step::{Step, StepError};
use duet_sys::socket;
use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::boot::Files;
use super::jail;
use super::process::Program;
use crate::spec::{LayerSpec, VmSpec};
use arguments::{LayerFile, Wiring};
pub(super) use qmp::Qmp;

/// How much the console may hold before it is read, in bytes as the kernel counts them: each byte of a slow guest's is a
/// buffer of its own then.
const CONSOLE_ROOM: usize = 1 << 20;

/// What the machine runs with, and the monitor's ends of it.
pub(super) struct Prepared {
    pub program: Program,
    pub qmp: Qmp,
    /// Both directions.
    pub console: OwnedFd,
}

/// Makes everything that the machine inherits. `agent` is the socket at which its agent's port listens.
pub(super) fn prepare(
    spec: &VmSpec,
    files: &mut Files,
    agent: OwnedFd,
    complaints: OwnedFd,
) -> Result<Prepared, StepError> {
    let (qmp, qmp_theirs) = socket::stream_pair().step("make QEMU's control socket")?;
    let (console, console_theirs) = socket::stream_pair().step("make the console")?;
    socket::reserve_send_buffer(&console_theirs, CONSOLE_ROOM).step("set up the console")?;
    let (kernel, initrd) = (readable(files.take(spec.kernel)?)?, readable(files.take(spec.initrd)?)?);
    let mut inherited = Vec::new();
    let mut disks = Vec::new();
    for disk in &spec.disks {
        let mut layers = Vec::new();
        for (index, layer) in disk.layers.iter().enumerate() {
            let (file, fd) = open_layer(layer, files, index > 0 || disk.read_only)?;
            layers.push(file);
            inherited.push(fd);
        }
        disks.push(layers);
    }
    let taps = spec.nics.iter().map(|nic| files.take(nic.tap)).collect::<Result<Vec<_>, _>>()?;
    let wiring = Wiring {
        kernel: kernel.as_raw_fd(),
        initrd: initrd.as_raw_fd(),
        qmp: qmp_theirs.as_raw_fd(),
        console: console_theirs.as_raw_fd(),
        agent: agent.as_raw_fd(),
        disks,
        taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    inherited.extend(taps);
    inherited.extend([kernel, initrd, qmp_theirs, console_theirs, agent]);
    let path = super::boot::c_string(spec.program.as_os_str())?;
    let program = Program {
        argv: arguments::arguments(spec, &wiring).into_iter().map(super::boot::c_string).collect::<Result<_, _>>()?,
        path,
        stdin: rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?,
        complaints,
        inherited,
        user: Some(spec.user),
    };
    Ok(Prepared { program, qmp: Qmp::new(qmp)?, console })
}

/// A file that QEMU can open again by its descriptor's name, as a user without rights: itself, or a copy in memory where
/// not everybody may read it (some distributions protect their kernels so).
fn readable(fd: OwnedFd) -> Result<OwnedFd, StepError> {
    let mut file = File::from(fd);
    if jail::is_public(&file) {
        return Ok(file.into());
    }
    let copy = rustix::fs::memfd_create(c"copy", MemfdFlags::CLOEXEC).step("make a copy in memory")?;
    let mut copy = File::from(copy);
    std::io::Seek::rewind(&mut file).step("read a kernel or initramfs")?;
    std::io::copy(&mut file, &mut copy).step("copy a kernel or initramfs")?;
    Ok(copy.into())
}

/// QEMU takes a descriptor only if it is open for exactly what it is to do with it.
fn open_layer(layer: &LayerSpec, files: &mut Files, read_only: bool) -> Result<(LayerFile, OwnedFd), StepError> {
    let mut fd = files.take(layer.file)?;
    if read_only && rustix::fs::fcntl_getfl(&fd).step("look at a disk")?.contains(OFlags::RDWR) {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        fd = File::open(path).step("open a disk for reading only")?.into();
    }
    let file = File::from(fd.as_fd().try_clone_to_owned().step("look at a disk")?);
    let block = file.metadata().step("look at a disk")?.file_type().is_block_device();
    Ok((LayerFile { fd: fd.as_raw_fd(), block }, fd))
}
