//! Loop devices: files as block devices (loop(4), `linux/loop.h`).
//!
//! Every device made here ends by itself with its last user (`LO_FLAGS_AUTOCLEAR`): the mount on it, or the descriptor
//! that [`attach`] returns. A process that is killed leaves none behind.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat};

use crate::ioctl;

const LOOP_CTL_GET_FREE: u32 = 0x4C82;
const LOOP_CONFIGURE: u32 = 0x4C0A;
const LOOP_SET_CAPACITY: u32 = 0x4C07;
const LOOP_GET_STATUS64: u32 = 0x4C05;

const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Bypasses the page cache of the file below where that can be done, so that nothing is cached twice.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// How many others may take the free device that was found before this gives up.
const ATTEMPTS: u32 = 100;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

impl LoopInfo {
    fn zeroed() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// Makes a block device of a file. It lasts as long as the descriptor is open or something on it is mounted.
///
/// # Errors
/// As open(2) and the ioctls of loop(4); `EBUSY` where others took every device that was free.
pub fn attach(file: impl AsFd) -> io::Result<(OwnedFd, PathBuf)> {
    let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let fd = u32::try_from(file.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    for _ in 0..ATTEMPTS {
        // SAFETY: this request takes no argument.
        let number = unsafe { ioctl::with_number(&control, LOOP_CTL_GET_FREE, 0) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let info = LoopInfo { flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, ..LoopInfo::zeroed() };
        let mut config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
        // SAFETY: the request takes a loop_config, whose only descriptor is open.
        match unsafe { ioctl::with(&device, LOOP_CONFIGURE, &mut config) } {
            Ok(_) => return Ok((device, path)),
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Opens a device if it is a loop device over this very file.
///
/// # Errors
/// As open(2) and fstat(2). `ENXIO` where it is a loop device over nothing.
pub fn open_over(device: &Path, file: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let device = rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut info = LoopInfo::zeroed();
    // SAFETY: the request fills a loop_info64.
    unsafe { ioctl::with(&device, LOOP_GET_STATUS64, &mut info) }?;
    let stat = fstat(file)?;
    // The kernel gives the device in the encoding of user space (`huge_encode_dev`).
    Ok(((info.device, info.inode) == (stat.st_dev, stat.st_ino)).then_some(device))
}

/// Has a device take the present size of its file.
///
/// # Errors
/// As the ioctl.
pub fn update_size(device: impl AsFd) -> io::Result<()> {
    // SAFETY: this request takes no argument.
    unsafe { ioctl::with_number(device, LOOP_SET_CAPACITY, 0) }.map(drop)
}
