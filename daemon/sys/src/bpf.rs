//! bpf(2), as far as device policies of control groups need it: building, loading, attaching and finding programs of type
//! `BPF_PROG_TYPE_CGROUP_DEVICE`. No library is worth its size for four commands and six kinds of instruction.
//!
//! Facts: bpf(2), include/uapi/linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The kernel takes no more programs of one type on one group (BPF_CGROUP_MAX_PROGS).
const MAX_ATTACHED: usize = 64;

/// A register of the machine: the result, arguments and scratch space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "they are numbers")]
pub enum Register {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
    R6 = 6,
}

/// How much a load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 32 bits.
    Word,
}

/// One instruction, as `struct bpf_insn` lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

impl Instruction {
    const fn new(code: u8, to: Register, from: u8, offset: i16, value: i32) -> Self {
        // The bit field puts the destination in the low half on little-endian machines, in the high half on others.
        let registers = if cfg!(target_endian = "little") { from << 4 | to as u8 } else { (to as u8) << 4 | from };
        Self { code, registers, offset, value }
    }

    /// `to = *(size *)(from + offset)`.
    #[must_use]
    pub const fn load(size: Size, to: Register, from: Register, offset: i16) -> Self {
        let code = match size {
            Size::Word => 0x61, // BPF_LDX | BPF_MEM | BPF_W
        };
        Self::new(code, to, from as u8, offset, 0)
    }

    /// `to = from`, 32 bits of it.
    #[must_use]
    pub const fn move_register(to: Register, from: Register) -> Self {
        Self::new(0xbc, to, from as u8, 0, 0) // BPF_ALU | BPF_MOV | BPF_X
    }

    /// `to = value`.
    #[must_use]
    pub const fn move_value(to: Register, value: u32) -> Self {
        Self::new(0xb4, to, 0, 0, value.cast_signed()) // BPF_ALU | BPF_MOV | BPF_K
    }

    /// `to &= value`.
    #[must_use]
    pub const fn and(to: Register, value: u32) -> Self {
        Self::new(0x54, to, 0, 0, value.cast_signed()) // BPF_ALU | BPF_AND | BPF_K
    }

    /// `to >>= value`, filling with zeroes.
    #[must_use]
    pub const fn shift_right(to: Register, value: u32) -> Self {
        Self::new(0x74, to, 0, 0, value.cast_signed()) // BPF_ALU | BPF_RSH | BPF_K
    }

    /// Skips `over` instructions unless the low 32 bits of `register` are `value`.
    #[must_use]
    pub const fn jump_unless_equal(register: Register, value: u32, over: i16) -> Self {
        Self::new(0x56, register, 0, over, value.cast_signed()) // BPF_JMP32 | BPF_JNE | BPF_K
    }

    /// Ends the program with the result in `R0`.
    #[must_use]
    pub const fn exit() -> Self {
        Self::new(0x95, Register::R0, 0, 0, 0) // BPF_JMP | BPF_EXIT
    }
}

/// How a program joins others on the same group.
#[derive(Debug)]
pub enum AttachMode {
    /// Beside them: all have to allow.
    Add,
    /// In the place of this one, in one step.
    Replace(OwnedFd),
}

/// The part of `union bpf_attr` for BPF_PROG_LOAD, up to the last field that is used.
#[derive(Default)]
#[repr(C)]
struct LoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[derive(Default)]
#[repr(C)]
struct AttachAttr {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replace: u32,
}

/// The part for BPF_PROG_QUERY.
#[derive(Default)]
#[repr(C)]
struct QueryAttr {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// The part for BPF_PROG_GET_FD_BY_ID.
#[derive(Default)]
#[repr(C)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// # Safety
/// `T` has to be the part of `union bpf_attr` that belongs to `command`, and every address in it valid for what the kernel
/// does with it there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<libc::c_int, Errno> {
    // SAFETY: the kernel reads (and for a query writes) `size_of::<T>()` bytes at `attr`, which is exclusively borrowed; the
    // addresses within are the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec, as bpf(2) always does) and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a program that judges device access; it lives as long as a handle or an attachment.
///
/// # Errors
/// What the kernel said; `EINVAL` or `EACCES` when the verifier refused the program.
pub fn load_cgroup_device(code: &[Instruction]) -> Result<OwnedFd, Errno> {
    let mut name = [0; 16];
    name[..12].copy_from_slice(b"duet_devices");
    let mut attr = LoadAttr {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(code.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name,
        ..LoadAttr::default()
    };
    // SAFETY: the addresses are of `code` (`count` instructions) and of a static string, both only read during the call.
    unsafe { bpf(BPF_PROG_LOAD, &mut attr) }.map(owned)
}

/// Attaches a device program to a cgroup2 group.
///
/// # Errors
/// What the kernel said.
pub fn attach_cgroup_device(group: BorrowedFd<'_>, program: BorrowedFd<'_>, mode: &AttachMode) -> Result<(), Errno> {
    let (flags, replace) = match mode {
        AttachMode::Add => (BPF_F_ALLOW_MULTI, 0),
        AttachMode::Replace(old) => (BPF_F_ALLOW_MULTI | BPF_F_REPLACE, raw(old.as_fd())),
    };
    let mut attr = AttachAttr { target: raw(group), program: raw(program), kind: BPF_CGROUP_DEVICE, flags, replace };
    // SAFETY: the part for this command, which holds no addresses.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches a device program from a cgroup2 group.
///
/// # Errors
/// What the kernel said.
pub fn detach_cgroup_device(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr =
        AttachAttr { target: raw(group), program: raw(program), kind: BPF_CGROUP_DEVICE, ..AttachAttr::default() };
    // SAFETY: the part for this command, which holds no addresses.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

/// The device programs on a cgroup2 group itself, not those above it.
///
/// # Errors
/// What the kernel said.
pub fn attached_cgroup_device(group: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut attr = QueryAttr {
        target: raw(group),
        kind: BPF_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: MAX_ATTACHED as u32,
        ..QueryAttr::default()
    };
    // SAFETY: the address is of `ids`, which is exclusively ours and has room for `count` numbers.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    let mut found = Vec::new();
    for id in ids.iter().take(attr.count as usize) {
        let mut attr = IdAttr { id: *id, ..IdAttr::default() };
        // SAFETY: the part for this command, which holds no addresses.
        match unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) } {
            Ok(fd) => found.push(owned(fd)),
            // It went away since.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}
