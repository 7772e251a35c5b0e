//! Small guests, and the shipped program to run them with.
//!
//! A guest is 32-bit code at [`BASE`], wrapped in an ELF file with a PVH entry. Hosts whose KVM interprets what it runs
//! manage these too. The tests are skipped, saying so, where there is no /dev/kvm at all.

#![allow(dead_code)] // each test program uses a part of it

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where a guest's code lies.
pub const BASE: u64 = 0x20_0000;
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The code between two labels of a `global_asm!`.
#[macro_export]
macro_rules! guest {
    ($name:ident, $($line:expr),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(stringify!($name), "_start:"),
            ".code32",
            $($line,)+
            ".code64",
            concat!(stringify!($name), "_end:"),
            ".popsection",
        );
        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!(stringify!($name), "_start")]
                static START: u8;
                #[link_name = concat!(stringify!($name), "_end")]
                static END: u8;
            }
            // SAFETY: the two labels stand around one run of read-only bytes.
            unsafe {
                let start = &raw const START;
                std::slice::from_raw_parts(start, usize::try_from((&raw const END).offset_from(start)).unwrap())
            }
        }
    };
}

/// Whether machines can be made here; if not, the reason is printed.
pub fn kvm() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

/// An ELF file with a PVH entry at the code's beginning (include/xen/interface/elfnote.h).
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let half = |file: &mut Vec<u8>, numbers: &[u16]| numbers.iter().for_each(|n| file.extend(n.to_le_bytes()));
    let word = |file: &mut Vec<u8>, numbers: &[u32]| numbers.iter().for_each(|n| file.extend(n.to_le_bytes()));
    let long = |file: &mut Vec<u8>, numbers: &[u64]| numbers.iter().for_each(|n| file.extend(n.to_le_bytes()));
    // The file's header: 64 bytes, then two program headers of 56.
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    half(&mut file, &[2, 62]); // an executable, x86-64
    word(&mut file, &[1]);
    long(&mut file, &[BASE, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 2, 0, 0, 0]);
    let (note, start) = (64 + 2 * 56, 64 + 2 * 56 + 20);
    word(&mut file, &[4, 0]); // PT_NOTE
    long(&mut file, &[note, 0, 0, 20, 20, 4]);
    word(&mut file, &[1, 7]); // PT_LOAD
    long(&mut file, &[start, BASE, BASE, code.len() as u64, code.len() as u64, 1]);
    word(&mut file, &[4, 4, 18]); // XEN_ELFNOTE_PHYS32_ENTRY
    file.extend(*b"Xen\0");
    word(&mut file, &[u32::try_from(BASE).unwrap()]);
    file.extend(code);
    file
}

/// A file that has these bytes and no name.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// A machine that runs in its own process.
pub struct Guest {
    child: Child,
    /// What it wrote to its serial port, from the beginning.
    output: File,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: i32,
    pub output: String,
    pub complaint: String,
}

/// Has the descriptor be inherited by the next program that is run.
pub fn inherit(fd: &impl AsFd) -> i32 {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    fd.as_fd().as_raw_fd()
}

impl Guest {
    /// Starts a machine with this code. `more` is merged into its description; `keep` are the descriptors in it.
    pub fn start(code: &[u8], more: Value, keep: &[OwnedFd]) -> Self {
        let (kernel, output) = (file(&elf(code)), tempfile::tempfile().unwrap());
        for fd in keep {
            inherit(fd);
        }
        let mut spec = json!({
            "kernel": inherit(&kernel), "memory": 32 << 20, "serial": {"output": inherit(&output)},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_duet-vmm"))
            .arg("-")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(spec.to_string().as_bytes()).unwrap();
        Self { child, output }
    }

    /// What the guest has written so far.
    pub fn output(&self) -> String {
        let mut bytes = vec![0; usize::try_from(self.output.metadata().unwrap().len()).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&self.output, &mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "not in time: {what}; the guest wrote {:?}", self.output());
            std::thread::yield_now();
        }
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by force.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code().unwrap_or(-1);
            }
            if Instant::now() >= deadline {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                panic!("the machine does not end; it wrote {:?}", self.output());
            }
            std::thread::yield_now();
        };
        let mut complaint = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        Ended { status, output: self.output(), complaint }
    }
}

/// A test that fails leaves no machine behind.
impl Drop for Guest {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a guest without anything more to its end.
pub fn run(code: &[u8]) -> Ended {
    Guest::start(code, json!({}), &[]).end()
}
