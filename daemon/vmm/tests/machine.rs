//! Machines with small guests: how they end, what they cannot do, how they are commanded.

mod common;

use std::os::fd::OwnedFd;

use common::{Ended, Guest, file, inherit, kvm, run};
use duet_sys::socket;
use duet_vmm::control::{Reply, Request};
use serde_json::json;

// Ports as in duet_vmm::layout.
guest!(
    powers_off,
    "mov dx, 0x3f8",
    "mov al, 'h'",
    "out dx, al",
    "mov al, 'i'",
    "out dx, al",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "2: hlt",
    "jmp 2b",
);
guest!(resets, "mov dx, 0x602", "mov al, 1", "out dx, al", "2: hlt", "jmp 2b");
guest!(panics, "mov dx, 0x505", "mov al, 1", "out dx, al", "2: hlt", "jmp 2b");
// Without a table of interrupts, any leads to a triple fault.
guest!(faults, "mov esp, 0x8000", "push 0", "push 0", "lidt [esp]", "int3");
// Through protected mode with 16-bit segments into real mode, to F000:FFF0, as a kernel resets by way of the BIOS.
guest!(
    resets_like_a_bios,
    "mov esp, 0x8000",
    // A table with 16-bit code at 8, below it its pointer.
    "mov dword ptr [0x1000], 0",
    "mov dword ptr [0x1004], 0",
    "mov dword ptr [0x1008], 0x0000ffff",
    "mov dword ptr [0x100c], 0x00009b00",
    "mov word ptr [0x1100], 15",
    "mov dword ptr [0x1102], 0x1000",
    "lgdt [0x1100]",
    // mov eax, cr0; and al, 0xfe; mov cr0, eax; jmp far f000:fff0
    "mov dword ptr [0x7000], 0x24c0200f",
    "mov dword ptr [0x7004], 0xc0220ffe",
    "mov dword ptr [0x7008], 0x00fff0ea",
    "mov byte ptr [0x700c], 0xf0",
    "mov eax, 0x7000",
    "push 8",
    "push eax",
    "retf",
);

#[test]
fn the_status_says_how_a_machine_ended() {
    if !kvm() {
        return;
    }
    let ended = |status, output: &str| Ended { status, output: output.to_owned(), complaint: String::new() };
    assert_eq!(run(powers_off()), ended(0, "hi"));
    // With memory on both sides of the hole below 4 GiB.
    assert_eq!(Guest::start(powers_off(), json!({"memory": 5u64 << 30}), &[]).end(), ended(0, "hi"));
    assert_eq!(run(resets()), ended(10, ""));
    assert_eq!(run(panics()), ended(11, ""));
    // A KVM that interprets what it runs does not always come as far as the third fault.
    assert!([12, 13].contains(&run(faults()).status));
    assert_eq!(run(resets_like_a_bios()), ended(10, ""));
}

// Every port but the power registers, in each width; then reads and writes where there is no memory: the PCI windows,
// past the end of memory, the top of the address space. At the end 'k' if what is not there reads as ones.
guest!(
    wild,
    "xor edx, edx",
    "2:",
    "cmp edx, 0x505",
    "je 3f",
    "cmp edx, 0x5fe",
    "jb 4f",
    "cmp edx, 0x602",
    "jbe 3f",
    "4:",
    "in al, dx",
    "in ax, dx",
    "in eax, dx",
    "out dx, al",
    "out dx, ax",
    "out dx, eax",
    "3:",
    "add edx, 7",
    "cmp edx, 0x10000",
    "jb 2b",
    "mov ebx, 0xc0000000",
    "5:",
    "mov eax, [ebx]",
    "mov [ebx], eax",
    "mov al, [ebx + 1]",
    "mov byte ptr [ebx + 3], 0x5a",
    "mov ax, [ebx + 0xffe]",
    "add ebx, 0x00ff1000",
    "jnc 5b",
    "mov ebx, 0x10000000",
    "mov dword ptr [ebx], 5",
    "mov eax, [ebx]",
    "cmp eax, 0xffffffff",
    "jne 6f",
    "mov dx, 0x3f8",
    "mov al, 'k'",
    "out dx, al",
    "6: mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "7: hlt",
    "jmp 7b",
);

#[test]
fn accesses_to_what_is_not_there_do_nothing() {
    if !kvm() {
        return;
    }
    let ended = run(wild());
    assert_eq!((ended.status, ended.complaint.as_str()), (0, ""));
    assert!(ended.output.ends_with('k'), "{:?}", ended.output);
}

// Echoes what it reads, and powers off at 'q'.
guest!(
    echoes,
    "2:",
    "mov dx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov dx, 0x3f8",
    "in al, dx",
    "out dx, al",
    "cmp al, 'q'",
    "jne 2b",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "3: hlt",
    "jmp 3b",
);

#[test]
fn more_input_than_the_port_holds_arrives_whole() {
    if !kvm() {
        return;
    }
    let text = "0123456789abcdef".repeat(20) + "q";
    let input: OwnedFd = file(text.as_bytes()).into();
    let output: OwnedFd = tempfile::tempfile().unwrap().into();
    let serial = json!({"serial": {"input": inherit(&input), "output": inherit(&output)}});
    let echo = output.try_clone().unwrap();
    assert_eq!(Guest::start(echoes(), serial, &[input, output]).end().status, 0);
    let mut written = vec![0; text.len() + 1];
    let len = std::os::unix::fs::FileExt::read_at(&std::fs::File::from(echo), &mut written, 0).unwrap();
    assert_eq!(String::from_utf8_lossy(&written[..len]), text);
}

// Counts in memory for ever, writing a dot at each 256th.
guest!(counts, "mov dx, 0x3f8", "mov al, '.'", "xor ecx, ecx", "2: inc cl", "jnz 2b", "out dx, al", "jmp 2b",);

fn ask(socket: &OwnedFd, request: &Request) -> Reply {
    socket::send(socket, &serde_json::to_vec(request).unwrap(), &[]).unwrap();
    let mut buffer = [0; 4096];
    let len = socket::receive(socket, &mut buffer).unwrap().len;
    serde_json::from_slice(&buffer[..len]).unwrap()
}

#[test]
fn a_machine_is_paused_resumed_and_stopped() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let listener = socket::listen_in(std::fs::File::open(dir.path()).unwrap(), "control".as_ref(), 4).unwrap();
    let guest = Guest::start(counts(), json!({"control": inherit(&listener)}), &[listener]);
    let control = socket::connect_in(dir.path(), "control".as_ref()).unwrap();
    let more = |guest: &Guest| {
        let before = guest.output().len();
        guest.until("the guest goes on", |guest| guest.output().len() > before);
    };
    more(&guest);
    assert_eq!(ask(&control, &Request::Pause), Reply::Done);
    assert_eq!(ask(&control, &Request::Status), Reply::Status { paused: true, balloon: 0 });
    let before = guest.output();
    // Twice is once; and while it is asked that, a guest that ran would write.
    for _ in 0..100 {
        assert_eq!(ask(&control, &Request::Pause), Reply::Done);
    }
    assert_eq!(guest.output(), before);
    assert_eq!(ask(&control, &Request::Resume), Reply::Done);
    more(&guest);
    socket::send(&control, b"[]", &[]).unwrap();
    let mut buffer = [0; 4096];
    let len = socket::receive(&control, &mut buffer).unwrap().len;
    assert!(matches!(serde_json::from_slice(&buffer[..len]).unwrap(), Reply::Failed { .. }));
    assert_eq!(ask(&control, &Request::Stop), Reply::Done);
    assert_eq!(guest.end().status, 14);
}

#[test]
fn a_jailed_machine_has_nothing_of_the_host() {
    if !kvm() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a jail needs root");
        return;
    }
    let guest = Guest::start(counts(), json!({"jail": {"uid": 54321, "gid": 54322}}), &[]);
    guest.until("the guest runs", |guest| !guest.output().is_empty());
    let proc = format!("/proc/{}", guest.pid());
    let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
    for line in [
        "Uid:\t54321\t54321\t54321\t54321",
        "Gid:\t54322\t54322\t54322\t54322",
        "Groups:\t ",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.lines().any(|found| found == line), "{line:?} is not in\n{status}");
    }
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let of = |who: &str| std::fs::read_link(format!("{who}/ns/{namespace}")).unwrap();
        assert_ne!(of(&proc), of("/proc/self"), "{namespace}");
    }
    assert_eq!(std::fs::read_dir(format!("{proc}/root")).unwrap().count(), 0);
    guest.kill();
}

#[test]
fn what_is_no_machine_is_refused_in_a_sentence() {
    let refused = |spec: serde_json::Value, words: &str| {
        let ended = Guest::start(powers_off(), spec, &[]).end();
        assert_eq!((ended.status, ended.output.as_str()), (1, ""));
        assert!(ended.complaint.contains(words), "{}", ended.complaint);
    };
    refused(json!({"cpus": 0}), "1 to 64 CPUs");
    refused(json!({"memory": 4096}), "memory");
    refused(json!({"memory": (32 << 20) + 1}), "4096");
    refused(json!({"command_line": "x".repeat(2048)}), "command line");
    refused(json!({"kernel": 1000}), "descriptor 1000");
    refused(json!({"initrd": 2}), "descriptor 2");
    refused(json!({"colour": "red"}), "colour");
    let (empty, text): (OwnedFd, OwnedFd) = (file(b"").into(), file(&[b'x'; 4096]).into());
    if kvm() {
        refused(json!({"kernel": inherit(&empty)}), "kernel");
        refused(json!({"kernel": inherit(&text)}), "kernel");
    }
}
