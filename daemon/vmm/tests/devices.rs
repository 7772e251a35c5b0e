//! Devices under a guest that sets them up and then gives them nonsense: chains, rings, registers.

mod common;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

use common::{Guest, file, inherit, kvm};
use serde_json::json;

// For each slot and each queue of it: descriptors of random places above 16 MiB, of random lengths and kinds, a random ring
// of them, and a kick; again and again, with resets and random registers between. ebx is the window of the slot (esi), edi
// the queue, edx its ring, ebp the random number.
guest!(
    scribbles,
    "mov esp, 0x9000",
    "mov ebp, 0x2545f491",
    "mov ecx, 12",
    "20:",
    "push ecx",
    "mov esi, 1",
    "21:",
    "mov ebx, esi",
    "shl ebx, 15",
    "add ebx, 0xc0000000",
    // Reset; acknowledge, driver; VERSION_1 and, now and then, event indices and what else there is; features are set.
    "mov byte ptr [ebx + 0x14], 0",
    "mov byte ptr [ebx + 0x14], 3",
    "mov dword ptr [ebx + 8], 0",
    "mov eax, [ebx + 4]",
    "call 90f",
    "and eax, ebp",
    "mov [ebx + 0xc], eax",
    "mov dword ptr [ebx + 8], 1",
    "mov dword ptr [ebx + 0xc], 1",
    "mov byte ptr [ebx + 0x14], 11",
    "mov edi, 0",
    "22:",
    "mov edx, esi",
    "shl edx, 18",
    "mov eax, edi",
    "shl eax, 16",
    "lea edx, [edx + eax + 0x400000]",
    "mov [ebx + 0x16], di",
    "mov [ebx + 0x20], edx",
    "lea eax, [edx + 0x4000]",
    "mov [ebx + 0x28], eax",
    "lea eax, [edx + 0x8000]",
    "mov [ebx + 0x30], eax",
    "mov word ptr [ebx + 0x1c], 1",
    "call 80f",
    "inc edi",
    "cmp edi, 3",
    "jb 22b",
    // The driver is ready.
    "mov byte ptr [ebx + 0x14], 15",
    "mov edi, 0",
    "23:",
    "mov [ebx + 0x5000 + edi * 4], di",
    "inc edi",
    "cmp edi, 3",
    "jb 23b",
    // Registers of all kinds, but the status, which would reset the device.
    "mov ecx, 24",
    "24:",
    "call 90f",
    "mov eax, ebp",
    "shr eax, 8",
    "and eax, 0x7ffc",
    "cmp eax, 0x14",
    "je 25f",
    "mov [ebx + eax], ebp",
    "mov eax, [ebx + eax]",
    "25:",
    "dec ecx",
    "jnz 24b",
    "inc esi",
    "cmp esi, 8",
    "jb 21b",
    "pop ecx",
    "dec ecx",
    "jnz 20b",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "26: hlt",
    "jmp 26b",
    // A random table and ring at edx.
    "80:",
    "push edx",
    "mov ecx, 64",
    "81:",
    "call 90f",
    "mov eax, ebp",
    "shr eax, 8",
    "or eax, 0x1000000",
    "mov [edx], eax",
    "mov dword ptr [edx + 4], 0",
    "call 90f",
    "mov eax, ebp",
    "shr eax, 18",
    "mov [edx + 8], eax",
    "call 90f",
    "mov eax, ebp",
    "shr eax, 4",
    "and eax, 0x003f0007",
    "mov [edx + 12], eax",
    "add edx, 16",
    "dec ecx",
    "jnz 81b",
    "pop edx",
    "mov ecx, 64",
    "82:",
    "call 90f",
    "mov eax, ebp",
    "shr eax, 20",
    "and eax, 0x7f",
    "mov [edx + 0x4002 + ecx * 2], ax",
    "dec ecx",
    "jnz 82b",
    "mov word ptr [edx + 0x4000], 0",
    "call 90f",
    "mov eax, ebp",
    "shr eax, 26",
    "mov [edx + 0x4002], ax",
    "ret",
    "90:",
    "imul ebp, ebp, 1664525",
    "add ebp, 1013904223",
    "ret",
);

#[test]
fn nonsense_in_queues_and_registers_harms_nobody() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let contents = vec![0x5a; 1 << 20];
    let (disk, kept): (OwnedFd, OwnedFd) = (file(&contents).into(), file(&contents).into());
    let output: OwnedFd = tempfile::tempfile().unwrap().into();
    let (input, mut typed) = std::io::pipe().unwrap();
    typed.write_all(&[b'x'; 4096]).unwrap();
    let input = OwnedFd::from(input);
    let socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut client = std::os::unix::net::UnixStream::connect(dir.path().join("socket")).unwrap();
    client.write_all(b"CONNECT 1024\nhello").unwrap();
    let socket = OwnedFd::from(socket);
    let devices = json!({"devices": [
        {"type": "disk", "file": inherit(&disk)},
        {"type": "disk", "file": inherit(&kept), "read_only": true},
        {"type": "rng"},
        {"type": "console", "input": inherit(&input), "output": inherit(&output)},
        {"type": "balloon"},
        {"type": "vsock", "cid": 3, "socket": inherit(&socket)},
    ]});
    let written = std::fs::File::from(output.try_clone().unwrap());
    let unchanged = std::fs::File::from(kept.try_clone().unwrap());
    let ended = Guest::start(scribbles(), devices, &[disk, kept, output, input, socket]).end();
    assert_eq!((ended.status, ended.complaint.as_str()), (0, ""));
    // It did come as far as the devices' threads.
    assert!(written.metadata().unwrap().len() > 0, "the console has written nothing");
    let mut now = vec![0; contents.len()];
    unchanged.read_exact_at(&mut now, 0).unwrap();
    assert!(now == contents, "a read-only disk was written to");
}
