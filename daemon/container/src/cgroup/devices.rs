//! Which device nodes a privileged container may use.
//!
//! An unprivileged container needs no such policy: the kernel lets a user namespace neither make nor open nodes beyond
//! those bound into it. A privileged one is real root, and is held by a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` on its
//! group in the cgroup2 tree. That works on both layouts, so version 1's `devices` hierarchy isn't used.
//!
//! The program sits on `<name>`, one above the container's own root, where the container can't reach to detach it; and with
//! `BPF_F_ALLOW_MULTI`, so that the container's systemd may add programs of its own below, which can only deny more.

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;

use duet_sys::bpf::{self, AttachMode, Instruction, Register, Size};
use rustix::io::Errno;

use super::{CgroupError, Result, io};

/// A kind of device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// What may be done with the nodes that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Which kind.
    pub kind: DeviceKind,
    /// Which major number; `None` for all.
    pub major: Option<u32>,
    /// Which minor number; `None` for all.
    pub minor: Option<u32>,
    /// Reading it.
    pub read: bool,
    /// Writing it.
    pub write: bool,
    /// Making nodes for it.
    pub mknod: bool,
}

/// The device nodes that are allowed. All others are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePolicy {
    rules: Vec<DeviceRule>,
}

impl Default for DevicePolicy {
    /// The nodes that every system expects (Documentation/admin-guide/devices.txt): null, zero, full, random, urandom, tty,
    /// console, ptmx, pts, fuse and net/tun; and making any node, since a node that can't be opened harms nobody and
    /// unpacking archives makes them.
    fn default() -> Self {
        let mut rules = vec![
            DeviceRule::new(DeviceKind::Char, None, None, "m"),
            DeviceRule::new(DeviceKind::Block, None, None, "m"),
        ];
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 229), (10, 200)] {
            rules.push(DeviceRule::new(DeviceKind::Char, Some(major), Some(minor), "rwm"));
        }
        rules.push(DeviceRule::new(DeviceKind::Char, Some(136), None, "rwm"));
        Self { rules }
    }
}

impl DevicePolicy {
    /// Exactly these rules.
    #[must_use]
    pub fn new(rules: Vec<DeviceRule>) -> Self {
        Self { rules }
    }

    /// Adds a rule.
    #[must_use]
    pub fn allow(mut self, rule: DeviceRule) -> Self {
        self.rules.push(rule);
        self
    }

    /// The program: for each rule, compare and fall through to the next one, or return 1; at the end, return 0.
    ///
    /// Its argument is `struct bpf_cgroup_dev_ctx { __u32 access_type; __u32 major; __u32 minor; }`, where access_type is
    /// the access wanted in the upper and the kind of node in the lower 16 bits (include/uapi/linux/bpf.h).
    fn program(&self) -> Vec<Instruction> {
        const CONTEXT: Register = Register::R1;
        const KIND: Register = Register::R2;
        const ACCESS: Register = Register::R3;
        const MAJOR: Register = Register::R4;
        const MINOR: Register = Register::R5;
        const SCRATCH: Register = Register::R6;
        const VERDICT: Register = Register::R0;
        let mut code = vec![
            Instruction::load(Size::Word, KIND, CONTEXT, 0),
            Instruction::move_register(ACCESS, KIND),
            Instruction::and(KIND, 0xffff),
            Instruction::shift_right(ACCESS, 16),
            Instruction::load(Size::Word, MAJOR, CONTEXT, 4),
            Instruction::load(Size::Word, MINOR, CONTEXT, 8),
        ];
        for rule in &self.rules {
            let mut tests = vec![(KIND, rule.kind.code())];
            let denied = ALL_ACCESS & !rule.access();
            if denied != 0 {
                tests.push((SCRATCH, 0));
            }
            tests.extend(rule.major.map(|major| (MAJOR, major)));
            tests.extend(rule.minor.map(|minor| (MINOR, minor)));
            if denied != 0 {
                code.push(Instruction::move_register(SCRATCH, ACCESS));
                code.push(Instruction::and(SCRATCH, denied));
            }
            let count = tests.len();
            for (at, (register, value)) in tests.into_iter().enumerate() {
                // Over the tests that follow and the two instructions that allow.
                let over = i16::try_from(count - at - 1 + 2).unwrap_or(i16::MAX);
                code.push(Instruction::jump_unless_equal(register, value, over));
            }
            code.push(Instruction::move_value(VERDICT, 1));
            code.push(Instruction::exit());
        }
        code.push(Instruction::move_value(VERDICT, 0));
        code.push(Instruction::exit());
        code
    }
}

// BPF_DEVCG_ACC_* of include/uapi/linux/bpf.h.
const ACCESS_MKNOD: u32 = 1;
const ACCESS_READ: u32 = 2;
const ACCESS_WRITE: u32 = 4;
const ALL_ACCESS: u32 = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;

impl DeviceKind {
    /// BPF_DEVCG_DEV_* of include/uapi/linux/bpf.h.
    fn code(self) -> u32 {
        match self {
            Self::Block => 1,
            Self::Char => 2,
        }
    }
}

impl DeviceRule {
    /// A rule from the letters that the kernel's own files use: `r`, `w`, `m` (mknod).
    #[must_use]
    pub fn new(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: &str) -> Self {
        let has = |letter| access.contains(letter);
        Self { kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
    }

    fn access(self) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.read, ACCESS_READ) | bit(self.write, ACCESS_WRITE) | bit(self.mknod, ACCESS_MKNOD)
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = match self.kind {
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        write!(out, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (set, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            if set {
                out.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl FromStr for DeviceRule {
    type Err = CgroupError;

    /// Reads the form of version 1's `devices.allow`: `c 10:229 rwm`, `b *:* m`.
    fn from_str(value: &str) -> Result<Self> {
        let bad = || CgroupError::BadValue { value: value.to_owned(), expected: "a device rule like \"c 10:229 rwm\"" };
        let number = |text: &str| match text {
            "*" => Ok(None),
            text => text.parse().map(Some).map_err(|_| bad()),
        };
        let mut words = value.split_whitespace();
        let (Some(kind), Some(numbers), Some(access), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad());
        };
        let kind = match kind {
            "c" => DeviceKind::Char,
            "b" => DeviceKind::Block,
            _ => return Err(bad()),
        };
        let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
        if !access.chars().all(|letter| "rwm".contains(letter)) {
            return Err(bad());
        }
        Ok(Self::new(kind, number(major)?, number(minor)?, access))
    }
}

/// Puts `policy` in force on the cgroup2 group at `dir`. Where one is in force it is replaced in one step, with no moment
/// without any.
pub(super) fn attach(dir: &Path, policy: &DevicePolicy) -> Result<()> {
    let failed = |action| move |errno: Errno| CgroupError::io(action, dir, errno);
    let group = io::open_dir(dir)?;
    let program = bpf::load_cgroup_device(&policy.program()).map_err(failed("load the device policy for"))?;
    let old = bpf::attached_cgroup_device(group.as_fd()).map_err(failed("find the device policy of"))?;
    let mut old = old.into_iter();
    let mode = match old.next() {
        Some(first) => AttachMode::Replace(first),
        None => AttachMode::Add,
    };
    bpf::attach_cgroup_device(group.as_fd(), program.as_fd(), &mode).map_err(failed("set the device policy of"))?;
    for extra in old {
        bpf::detach_cgroup_device(group.as_fd(), extra.as_fd()).map_err(failed("drop a device policy of"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::DeviceRule;

    #[test]
    fn rules_in_words() {
        for text in ["c 10:229 rwm", "b *:* m", "c 136:* rw", "b 8:* r"] {
            assert_eq!(text.parse::<DeviceRule>().unwrap().to_string(), text);
        }
        for bad in ["", "c", "d 1:1 rwm", "c 1 rwm", "c 1:1 x", "c 1:1 r w", "c -1:1 r", "c 1:99999999999 r"] {
            assert!(bad.parse::<DeviceRule>().is_err(), "{bad}");
        }
    }
}
