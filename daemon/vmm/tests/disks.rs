//! Disks under a guest that uses them as a driver does: what it reads and writes of layers, and how fast it may.

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Guest, inherit, kvm};
use duet_sys::socket;
use duet_vmm::control::{Reply, Request};
use duet_vmm::image::Format;
use duet_vmm::image::make::{Backing, make};
use duet_vmm::limit::Rate;
use duet_vmm::spec::DiskLimits;
use serde_json::json;

// A driver of the disk in slot 1, with one queue and no interrupts. "call 80f" makes a request of the kind eax at the
// sector edx, with 4096 bytes at 0x420000, waits for it and writes its status, '0' if all is well. "call 85f" writes the
// first four of the bytes. ebx is the register window, esi counts requests.
macro_rules! driver {
    ($name:ident, $($line:expr),+ $(,)?) => {
        guest!(
            $name,
            "mov esp, 0x9000",
            "mov ebx, 0xc0008000",
            // Reset; acknowledge, driver; VERSION_1; features are set.
            "mov byte ptr [ebx + 0x14], 0",
            "mov byte ptr [ebx + 0x14], 3",
            "mov dword ptr [ebx + 8], 0",
            "mov dword ptr [ebx + 0xc], 0",
            "mov dword ptr [ebx + 8], 1",
            "mov dword ptr [ebx + 0xc], 1",
            "mov byte ptr [ebx + 0x14], 11",
            "mov word ptr [ebx + 0x16], 0",
            "mov dword ptr [ebx + 0x20], 0x400000",
            "mov dword ptr [ebx + 0x28], 0x404000",
            "mov dword ptr [ebx + 0x30], 0x408000",
            "mov word ptr [ebx + 0x1c], 1",
            "mov byte ptr [ebx + 0x14], 15",
            "xor esi, esi",
            $($line,)+
            "mov dx, 0x600",
            "mov al, 0x34",
            "out dx, al",
            "79: hlt",
            "jmp 79b",
            "80:",
            // The header, then descriptors of it, of the data and of the status.
            "mov dword ptr [0x410000], eax",
            "mov dword ptr [0x410004], 0",
            "mov dword ptr [0x410008], edx",
            "mov dword ptr [0x41000c], 0",
            "mov dword ptr [0x400000], 0x410000",
            "mov dword ptr [0x400004], 0",
            "mov dword ptr [0x400008], 16",
            "mov dword ptr [0x40000c], 0x00010001",
            "mov dword ptr [0x400010], 0x420000",
            "mov dword ptr [0x400014], 0",
            "mov dword ptr [0x400018], 4096",
            "mov dword ptr [0x40001c], 0x00020001",
            // What is read is written to memory, and a flush has no data.
            "test eax, eax",
            "jnz 81f",
            "or dword ptr [0x40001c], 2",
            "81:",
            "cmp eax, 4",
            "jne 82f",
            "mov dword ptr [0x40000c], 0x00020001",
            "82:",
            "mov dword ptr [0x400020], 0x430000",
            "mov dword ptr [0x400024], 0",
            "mov dword ptr [0x400028], 1",
            "mov dword ptr [0x40002c], 2",
            "mov byte ptr [0x430000], 0xff",
            "mov eax, esi",
            "and eax, 255",
            "mov word ptr [eax * 2 + 0x404004], 0",
            "inc esi",
            "mov word ptr [0x404002], si",
            "mov word ptr [ebx + 0x5000], 0",
            "83:",
            "pause",
            "cmp word ptr [0x408002], si",
            "jne 83b",
            "mov dx, 0x3f8",
            "mov al, byte ptr [0x430000]",
            "add al, '0'",
            "out dx, al",
            "ret",
            "85:",
            "xor ecx, ecx",
            "86:",
            "mov al, byte ptr [ecx + 0x420000]",
            "out dx, al",
            "inc ecx",
            "cmp ecx, 4",
            "jb 86b",
            "ret",
        );
    };
}

driver!(
    stores,
    "xor eax, eax",
    "xor edx, edx",
    "call 80f",
    "call 85f",
    "mov dword ptr [0x420000], 0x2177656e",
    "mov eax, 1",
    "mov edx, 8",
    "call 80f",
    "mov eax, 4",
    "xor edx, edx",
    "call 80f",
    "mov dword ptr [0x420000], 0",
    "xor eax, eax",
    "mov edx, 8",
    "call 80f",
    "call 85f",
);

driver!(reads_for_ever, "2:", "xor eax, eax", "xor edx, edx", "call 80f", "jmp 2b");

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn a_guest_writes_to_its_layer_and_not_to_what_lies_below() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [base, middle, top] = ["base", "middle", "top"].map(|name| dir.path().join(name));
    let contents = b"base".repeat(1 << 18);
    std::fs::write(&base, &contents).unwrap();
    let below = |path: &'static str, format| Some(Backing { name: path, format, size: 1 << 20 });
    make(open(&middle), 1 << 20, below("base", Format::Raw)).unwrap();
    make(open(&top), 1 << 20, below("middle", Format::Qcow2)).unwrap();
    let layers = std::fs::read(&middle).unwrap();
    for round in 0..2 {
        let keep: Vec<OwnedFd> =
            vec![open(&top).into(), File::open(&middle).unwrap().into(), File::open(&base).unwrap().into()];
        let mut spec = json!({"devices": [{"type": "disk", "file": inherit(&keep[0]), "format": "qcow2", "backing": [
            {"file": inherit(&keep[1]), "format": "qcow2"}, {"file": inherit(&keep[2]), "format": "raw"},
        ]}]});
        if rustix::process::geteuid().is_root() {
            spec["jail"] = json!({"uid": 54321, "gid": 54321});
        }
        let ended = Guest::start(stores(), spec, &keep).end();
        assert_eq!((ended.status, ended.complaint.as_str()), (0, ""), "round {round}");
        assert_eq!(ended.output, "0base000new!");
    }
    assert!(std::fs::read(&base).unwrap() == contents);
    assert!(std::fs::read(&middle).unwrap() == layers);
    // Another program finds the same.
    let whole = dir.path().join("whole");
    let run = |arguments: &[&str]| Command::new("qemu-img").args(arguments).current_dir(dir.path()).status();
    match run(&["check", "-q", "top"]) {
        Ok(status) => assert!(status.success()),
        Err(error) => return eprintln!("skipped: qemu-img (package qemu-utils) cannot be run: {error}"),
    }
    assert!(run(&["convert", "-O", "raw", "top", "whole"]).unwrap().success());
    let mut wanted = contents;
    wanted[4096..4100].copy_from_slice(b"new!");
    assert!(std::fs::read(whole).unwrap() == wanted);
}

#[test]
fn layers_that_are_no_disk_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    make(open(&path), 1 << 20, Some(Backing { name: "/etc/shadow", format: Format::Raw, size: 1 })).unwrap();
    let refused = |backing: serde_json::Value, format: &str, words: &str| {
        let keep: Vec<OwnedFd> = vec![open(&path).into()];
        let device = json!({"type": "disk", "file": inherit(&keep[0]), "format": format, "backing": backing});
        let ended = Guest::start(stores(), json!({"devices": [device]}), &keep).end();
        assert_eq!(ended.status, 1);
        assert!(ended.complaint.contains(words), "{}", ended.complaint);
    };
    // What the header names is not opened.
    refused(json!([]), "qcow2", "names a backing file, but there is no layer below it");
    refused(json!([]), "vmdk", "vmdk");
    refused(json!([{"file": 1000, "format": "raw"}]), "qcow2", "descriptor 1000");
    refused(json!([{"file": 1000}]), "qcow2", "format");
}

#[test]
fn limits_of_a_disk_hold_and_change_while_it_waits() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let listener = socket::listen_in(File::open(dir.path()).unwrap(), "control".as_ref(), 4).unwrap();
    let disk: OwnedFd = common::file(&[1; 8192]).into();
    let limits = |operations| {
        let read = Rate { operations: std::num::NonZeroU64::new(operations), ..Rate::default() };
        DiskLimits { read, ..DiskLimits::default() }
    };
    let devices =
        json!([{"type": "disk", "file": inherit(&disk), "read_only": true, "limits": limits(5)}, {"type": "rng"}]);
    let started = Instant::now();
    let guest =
        Guest::start(reads_for_ever(), json!({"control": inherit(&listener), "devices": devices}), &[listener, disk]);
    let control = socket::connect_in(dir.path(), "control".as_ref()).unwrap();
    let ask = |request: &Request| {
        socket::send(&control, &serde_json::to_vec(request).unwrap(), &[]).unwrap();
        let mut buffer = [0; 4096];
        let len = socket::receive(&control, &mut buffer).unwrap().len;
        serde_json::from_slice::<Reply>(&buffer[..len]).unwrap()
    };
    // A second's worth at once, then five in each, the first as soon as there is anything.
    guest.until("the guest reads", |guest| guest.output().len() >= 20);
    assert!(started.elapsed() > Duration::from_millis(2700), "{:?}", started.elapsed());
    // While it waits for minutes, the machine answers, and a change lets it go on.
    assert_eq!(ask(&Request::LimitDisk { slot: 1, limits: limits(1) }), Reply::Done);
    let before = guest.output().len();
    guest.until("the guest reads on", |guest| guest.output().len() > before);
    assert_eq!(ask(&Request::LimitDisk { slot: 1, limits: DiskLimits::default() }), Reply::Done);
    let (before, changed) = (guest.output().len(), Instant::now());
    guest.until("the guest reads without limits", |guest| guest.output().len() > before + 100);
    assert!(changed.elapsed() < Duration::from_secs(50), "{:?}", changed.elapsed());
    assert!(guest.output().bytes().all(|status| status == b'0'));
    for slot in [0, 2, 3, 255] {
        assert!(matches!(ask(&Request::LimitDisk { slot, limits: limits(1) }), Reply::Failed { .. }));
    }
    // One that waits holds up nothing of the end.
    let bytes = Rate { bytes: std::num::NonZeroU64::new(1), ..Rate::default() };
    assert_eq!(
        ask(&Request::LimitDisk { slot: 1, limits: DiskLimits { read: bytes, ..DiskLimits::default() } }),
        Reply::Done
    );
    let ended = Instant::now();
    assert_eq!(ask(&Request::Stop), Reply::Done);
    assert_eq!(guest.end().status, 14);
    assert!(ended.elapsed() < Duration::from_secs(20), "{:?}", ended.elapsed());
}
