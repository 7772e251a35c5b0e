//! A guest of a few instructions in duet-vmm, which hosts whose KVM interprets what it runs manage too. Without
//! /dev/kvm, or without the program beside the monitor (`cargo build -p duet-vmm`), these are skipped.

mod support;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use duet_control::client::ClientError;
use duet_control::protocol::{ErrorKind, ExitReason};
use duet_vm::spec::{Accelerator, DiskSpec, LayerFormat, LayerSpec};
use rustix::process::{Pid, Signal};
use support::{Machine, Plan, SOON, is_root};

/// Where the guest's code lies.
const BASE: u32 = 0x20_0000;

/// Takes bytes from the serial port: `o` switches off, `r` resets, `p` panics, all else is written back.
const CODE: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, 0xec, // 0: in al, 0x3fd
    0xa8, 0x01, 0x74, 0xf7, // test al, 1; jz 0
    0x66, 0xba, 0xf8, 0x03, 0xec, // in al, 0x3f8
    0x3c, b'o', 0x74, 0x0b, 0x3c, b'r', 0x74, 0x11, 0x3c, b'p', 0x74, 0x17, // cmp, je
    0xee, 0xeb, 0xe3, // out 0x3f8, al; jmp 0
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, 0xeb, 0xfd, // out 0x600, 0x34; hlt
    0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd, // out 0x602, 1; hlt
    0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd, // out 0x505, 1; hlt
];

/// An ELF file with a PVH entry at the code's beginning (include/xen/interface/elfnote.h).
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let long = |file: &mut Vec<u8>, numbers: &[u64]| numbers.iter().for_each(|n| file.extend(n.to_le_bytes()));
    let word = |file: &mut Vec<u8>, numbers: &[u32]| numbers.iter().for_each(|n| file.extend(n.to_le_bytes()));
    word(&mut file, &[2 | 62 << 16, 1]); // an executable, x86-64
    long(&mut file, &[BASE.into(), 64, 0]);
    word(&mut file, &[0, 64 | 56 << 16, 2, 0]);
    let (note, start, len) = (64 + 2 * 56, 64 + 2 * 56 + 20, CODE.len() as u64);
    word(&mut file, &[4, 0]); // PT_NOTE
    long(&mut file, &[note, 0, 0, 20, 20, 4]);
    word(&mut file, &[1, 7]); // PT_LOAD
    long(&mut file, &[start, BASE.into(), BASE.into(), len, len, 1]);
    word(&mut file, &[4, 4, 18]); // XEN_ELFNOTE_PHYS32_ENTRY
    file.extend(*b"Xen\0");
    word(&mut file, &[BASE]);
    file.extend(CODE);
    file
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn plan(name: &str) -> Option<Plan> {
    let program = Path::new(env!("CARGO_BIN_EXE_duet-vm-monitor")).with_file_name("duet-vmm");
    if !is_root() {
        return None;
    }
    if !program.exists() || File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("skipped: no /dev/kvm, or no {}", program.display());
        return None;
    }
    let mut plan = Plan::bare(name, Accelerator::Kvm, program, file(&elf()), file(b"initrd"));
    plan.spec.memory = 32 << 20;
    plan.spec.cpus = 1;
    plan.files.push(file(&[0; 1 << 16]).into());
    let layers = vec![LayerSpec { file: 2, format: LayerFormat::Raw }];
    plan.spec.disks.push(DiskSpec { layers, read_only: false, serial: "disk".to_owned() });
    Some(plan)
}

/// Types a letter at the console and waits for how the machine ends.
fn ended_by(machine: &Machine, letter: u8) -> ExitReason {
    let watcher = machine.client();
    watcher.watch().unwrap();
    let client = machine.client();
    let mut console = UnixStream::from(client.console(false).unwrap());
    console.set_read_timeout(Some(SOON)).unwrap();
    console.write_all(b"hi").unwrap();
    let mut said = [0; 2];
    console.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hi");
    assert_eq!(machine.console(), "hi");
    console.write_all(&[letter]).unwrap();
    machine.ended(&watcher)
}

#[test]
fn a_machine_says_how_it_ended() {
    for (letter, reason) in
        [(b'o', ExitReason::Halt), (b'r', ExitReason::Reboot), (b'p', ExitReason::Exited { code: 11 })]
    {
        let Some(plan) = plan("ends") else { return };
        assert_eq!(ended_by(&plan.run(), letter), reason);
    }
}

#[test]
fn a_machine_is_asked_and_killed() {
    let Some(plan) = plan("killed") else { return };
    let machine = plan.run();
    let watcher = machine.client();
    watcher.watch().unwrap();
    let status = machine.client().status().unwrap();
    eprintln!("{:?}", status.status.start_timings);
    assert_eq!(status.status.init_pid, machine.started.pid);
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.started.pid)).unwrap();
    assert!(status.contains("Uid:\t4000000\t4000000"), "{status}");
    let refused = machine.client().guest_state(duet_control::client::CALL_TIMEOUT).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(error) if error.kind == ErrorKind::Other));
    // The power button, which this guest has no driver for.
    machine.client().stop().unwrap();
    machine.client().signal_init(9).unwrap();
    assert_eq!(machine.ended(&watcher), ExitReason::Signal { signal: 9 });
}

/// Groups for the test alone, in the v2 tree and in a v1 tree, of those that the host has. Removed when dropped.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn make(name: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let places = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let usable = places.filter(|place| place[2] == "cgroup2" || place[1].ends_with("/pids"));
        let groups: Vec<_> = usable.map(|place| Path::new(place[1]).join(name)).collect();
        groups.iter().for_each(|group| std::fs::create_dir(group).unwrap());
        Self(groups)
    }

    /// Whether each has this process, and no other.
    fn hold(&self, pid: u32) -> bool {
        let members = self.0.iter().map(|group| std::fs::read_to_string(group.join("cgroup.procs")).unwrap());
        members.into_iter().all(|members| members == format!("{pid}\n"))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.0.iter().for_each(|group| drop(std::fs::remove_dir(group)));
    }
}

#[test]
fn a_machine_is_in_its_groups() {
    let Some(mut plan) = plan("groups") else { return };
    let groups = Groups::make(&format!("duet-test-vm-{}", std::process::id()));
    assert!(!groups.0.is_empty(), "no control groups are mounted");
    plan.spec.cgroups = groups.0.clone();
    let machine = plan.run();
    assert!(groups.hold(machine.started.pid));
    drop(machine);
    for group in &groups.0 {
        std::fs::remove_dir(group).unwrap();
    }
}

#[test]
fn a_machine_ends_with_its_monitor() {
    let Some(plan) = plan("orphan") else { return };
    let machine = plan.run();
    let monitor = machine.client().status().unwrap().status.monitor_pid;
    rustix::process::kill_process(Pid::from_raw(monitor.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let gone = duet_sys::socket::wait_readable(&machine.started.pidfd, Instant::now() + SOON).unwrap();
    assert!(gone, "the machine outlives its monitor");
    // It could not tidy up.
    std::fs::remove_file(machine.plan.path("monitor.sock")).unwrap();
}

#[test]
fn a_machine_that_cannot_run_says_why() {
    let Some(mut plan) = plan("broken") else { return };
    plan.files[0] = file(b"no kernel").into();
    let error = plan.start().unwrap_err().to_string();
    assert!(error.starts_with("run the machine: duet-vmm: "), "{error}");
    plan.assert_gone();
}
