//! The system call filter: a short list of calls that concern the host as a whole and that no container may make.
//!
//! The list is the one that LXC denies by default: loading kernels and modules, opening files by handle (which walks
//! out of a mount), and forced unmounts. Beside them, except where containers are nested, making subvolumes of btrfs,
//! which any user may elsewhere: they would escape the size of the root disk and be in none of its snapshots. Everything
//! else is left to capabilities and namespaces, because a system container runs whole distributions. Denied calls fail
//! with an error number; the program lives on.
//!
//! The program is written by hand: it must cover each calling convention that the machine's kernel accepts (on x86-64
//! also those of i386 and x32, whose numbers differ), and must not kill what it does not know. It keeps to instructions
//! that depend on the number alone wherever possible, which lets the kernel cache its answers per call (the "action
//! cache" of Linux 5.11), so that it costs nothing measurable.

use duet_sys::seccomp::Instruction;

/// One calling convention.
struct Convention {
    /// `AUDIT_ARCH_*` of `linux/audit.h`.
    arch: u32,
    /// What is added to each number (`__X32_SYSCALL_BIT`).
    offset: u32,
    /// The numbers that are always denied.
    denied: &'static [u32],
    /// `umount2`.
    umount2: u32,
    /// `ioctl`.
    ioctl: u32,
}

#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

/// Whether btrfs subvolumes can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subvolumes {
    /// They can.
    Allowed,
    /// They cannot.
    Denied,
}

/// The requests of `linux/btrfs.h` that make subvolumes: BTRFS_IOC_SNAP_CREATE, BTRFS_IOC_SUBVOL_CREATE, and the second
/// version of each.
const SUBVOLUMES: [u32; 4] = [0x5000_9401, 0x5000_940e, 0x5000_9417, 0x5000_9418];

/// Numbers from the kernel's `arch/x86/entry/syscalls/syscall_{64,32}.tbl`, in the order init_module, delete_module,
/// finit_module, kexec_load, kexec_file_load (not on i386), open_by_handle_at.
#[cfg(target_arch = "x86_64")]
const CONVENTIONS: [Convention; 3] = [
    // x32 comes first: it shares its architecture with x86-64 and is told apart by the bit in the number.
    Convention {
        arch: 0xC000_003E,
        offset: X32_BIT,
        denied: &[175, 176, 313, 528, 320, 304],
        umount2: 166,
        ioctl: 514,
    },
    Convention { arch: 0xC000_003E, offset: 0, denied: &[175, 176, 313, 246, 320, 304], umount2: 166, ioctl: 16 },
    Convention { arch: 0x4000_0003, offset: 0, denied: &[128, 129, 350, 283, 342], umount2: 52, ioctl: 54 },
];

/// Numbers from the kernel's `include/uapi/asm-generic/unistd.h` and `arch/arm/tools/syscall.tbl`, in the same order.
#[cfg(target_arch = "aarch64")]
const CONVENTIONS: [Convention; 2] = [
    Convention { arch: 0xC000_00B7, offset: 0, denied: &[105, 106, 273, 104, 294, 265], umount2: 39, ioctl: 29 },
    Convention { arch: 0x4000_0028, offset: 0, denied: &[128, 129, 379, 347, 401, 371], umount2: 52, ioctl: 54 },
];

// Offsets in struct seccomp_data (seccomp(2)).
const NR: u32 = 0;
const ARCH: u32 = 4;
/// The low half of the second argument, on the little-endian machines above.
const ARG1: u32 = 24;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

const fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The filter of every container on this kind of machine.
pub fn filter(subvolumes: Subvolumes) -> Vec<Instruction> {
    let mut program = Vec::new();
    for convention in &CONVENTIONS {
        let body = body(convention, subvolumes);
        // One more than the body: the load of the number, or the test of the x32 bit, that is skipped with it.
        program.push(statement(LOAD, ARCH));
        let len = u8::try_from(body.len()).expect("a handful of instructions");
        if convention.offset == 0 {
            program.push(jump(JUMP_EQUAL, convention.arch, 0, len + 1));
            program.push(statement(LOAD, NR));
        } else {
            program.push(jump(JUMP_EQUAL, convention.arch, 0, len + 2));
            program.push(statement(LOAD, NR));
            program.push(jump(JUMP_SET, convention.offset, 0, len));
        }
        program.extend(body);
    }
    // A convention that the table does not know cannot exist on the machines above.
    program.push(statement(RETURN, errno(libc::ENOSYS)));
    program
}

/// Decides for one convention, with the call's number loaded; every path returns.
fn body(convention: &Convention, subvolumes: Subvolumes) -> Vec<Instruction> {
    let mut program = Vec::new();
    for number in convention.denied {
        program.push(jump(JUMP_EQUAL, number + convention.offset, 0, 1));
        program.push(statement(RETURN, errno(libc::EPERM)));
    }
    // A forced unmount of a network filesystem breaks it for the host and all other containers.
    program.push(jump(JUMP_EQUAL, convention.umount2 + convention.offset, 0, 4));
    program.push(statement(LOAD, ARG1));
    program.push(jump(JUMP_SET, libc::MNT_FORCE as u32, 0, 1));
    program.push(statement(RETURN, errno(libc::EACCES)));
    program.push(statement(RETURN, ALLOW));
    if subvolumes == Subvolumes::Denied {
        let checks = 2 * SUBVOLUMES.len() as u8;
        program.push(jump(JUMP_EQUAL, convention.ioctl + convention.offset, 0, 1 + checks));
        program.push(statement(LOAD, ARG1));
        for request in SUBVOLUMES {
            program.push(jump(JUMP_EQUAL, request, 0, 1));
            program.push(statement(RETURN, errno(libc::EPERM)));
        }
    }
    program.push(statement(RETURN, ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would, on a number, an architecture and a second argument.
    fn run(program: &[Instruction], arch: u32, number: u32, arg1: u32) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let instruction = program[at];
            at += 1;
            let skip = |taken: bool| usize::from(if taken { instruction.jt } else { instruction.jf });
            match instruction.code {
                LOAD => {
                    accumulator = match instruction.k {
                        NR => number,
                        ARCH => arch,
                        ARG1 => arg1,
                        other => panic!("load of {other}"),
                    };
                }
                JUMP_EQUAL => at += skip(accumulator == instruction.k),
                JUMP_SET => at += skip(accumulator & instruction.k != 0),
                RETURN => return instruction.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn every_convention_denies_its_numbers_and_allows_the_rest() {
        let (program, open) = (filter(Subvolumes::Denied), filter(Subvolumes::Allowed));
        for convention in &CONVENTIONS {
            for number in 0..600 {
                let got = run(&program, convention.arch, number + convention.offset, 0);
                let expected = if convention.denied.contains(&number) { errno(libc::EPERM) } else { ALLOW };
                assert_eq!(got, expected, "arch {:#x} number {number}+{:#x}", convention.arch, convention.offset);
            }
            let umount = convention.umount2 + convention.offset;
            assert_eq!(run(&program, convention.arch, umount, 1), errno(libc::EACCES));
            assert_eq!(run(&program, convention.arch, umount, 3), errno(libc::EACCES));
            assert_eq!(run(&program, convention.arch, umount, 2), ALLOW);
            let ioctl = convention.ioctl + convention.offset;
            for request in SUBVOLUMES {
                assert_eq!(run(&program, convention.arch, ioctl, request), errno(libc::EPERM));
                assert_eq!(run(&program, convention.arch, ioctl, request ^ 0x200), ALLOW);
                assert_eq!(run(&open, convention.arch, ioctl, request), ALLOW);
            }
        }
    }

    #[test]
    fn an_unknown_convention_is_refused() {
        assert_eq!(run(&filter(Subvolumes::Denied), 0x1234, 0, 0), errno(libc::ENOSYS));
    }
}
