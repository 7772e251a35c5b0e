//! Installing a seccomp filter.

use std::io;

/// One instruction of classic BPF (`struct sock_filter`, bpf(4) and seccomp(2)).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if a test holds.
    pub jt: u8,
    /// How many to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const Instruction,
}

/// Installs a filter for this thread and all that it will start. Needs `CAP_SYS_ADMIN` in the user namespace, since
/// `no_new_privs` is left alone: a system container has set-user-id programs.
///
/// # Errors
/// As seccomp(2) `SECCOMP_SET_MODE_FILTER`; `EINVAL` for a program that the kernel's verifier refuses.
pub fn install(filter: &[Instruction]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(filter.len()).map_err(io::Error::other)?;
    let program = Program { len, filter: filter.as_ptr() };
    // SAFETY: `program` points to `len` instructions that live across the call; the kernel copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
