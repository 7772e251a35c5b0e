//! Whether this host's KVM is of use: some hosts have a /dev/kvm that interprets what it should run, or cannot run 64-bit
//! code at all. So a small program is run in 64-bit mode, against the clock.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm, VcpuExit};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Entry;
use crate::cpuid::Features;
use crate::{layout, memory, vcpu};

/// How long the program may take. A CPU needs some 1 ms for it, one in software emulation 8 to 30 ms, and a KVM that
/// interprets seconds.
pub const DEADLINE: Duration = Duration::from_millis(80);
/// How often it is run: on a host that is busy it may be its neighbours' fault that it took long.
const ATTEMPTS: u32 = 5;
/// How many times the program's loop of [`LOOP_INSTRUCTIONS`] runs.
const ROUNDS: u32 = 500_000;
/// Instructions in a round.
const LOOP_INSTRUCTIONS: u32 = 4;
/// The port on which the program hands in its result.
const RESULT_PORT: u16 = 0x10;
/// The factor of the program's sum, which needs 64 bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Why KVM is of no use here.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No KVM.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(#[source] kvm_ioctls::Error),
    /// Another KVM.
    #[error("/dev/kvm has version {0} of its interface and not {KVM_API_VERSION}")]
    Version(i32),
    /// What a machine is made with.
    #[error("KVM lacks {0}, which machines are made with")]
    Lacks(&'static str),
    /// What KVM says.
    #[error("KVM cannot make a machine: {0}")]
    Make(Box<dyn std::error::Error + Send + Sync>),
    /// Too slow.
    #[error(
        "KVM runs guests too slowly: {} instructions were not done after {} ms. The CPU's virtualization is emulated here",
        ROUNDS * LOOP_INSTRUCTIONS,
        DEADLINE.as_millis()
    )]
    Slow,
    /// Wrong.
    #[error("KVM does not run 64-bit code right: {0}")]
    Wrong(String),
}

fn make(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ProbeError {
    ProbeError::Make(error.into())
}

/// The program: `ecx` times multiply, add, count and loop; then hand in the two halves of the sum.
fn program() -> Vec<u8> {
    let mut code = vec![0x31, 0xc0]; // xor eax, eax
    code.extend([0xb9]); // mov ecx, ROUNDS
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0x48, 0xbb]); // mov rbx, FACTOR
    code.extend(FACTOR.to_le_bytes());
    code.extend([
        0x48,
        0x0f,
        0xaf,
        0xc3, // again: imul rax, rbx
        0x48,
        0x01,
        0xc8, // add rax, rcx
        0xff,
        0xc9, // dec ecx
        0x75,
        0xf5, // jnz again
        0xe7,
        RESULT_PORT as u8, // out RESULT_PORT, eax
        0x48,
        0xc1,
        0xe8,
        0x20, // shr rax, 32
        0xe7,
        RESULT_PORT as u8, // out RESULT_PORT, eax
        0xf4,              // hlt
    ]);
    code
}

/// What the program has to come to.
fn result() -> u64 {
    (1..=ROUNDS).rev().fold(0u64, |sum, round| sum.wrapping_mul(FACTOR).wrapping_add(round.into()))
}

/// Runs a small program in a machine of its own. What the program takes is bounded by [`DEADLINE`]; making the machine
/// takes a few milliseconds more. One that is too slow is run anew, up to [`ATTEMPTS`] times in all.
///
/// # Errors
/// If KVM is of no use here: why.
pub fn probe() -> Result<Duration, ProbeError> {
    let mut more = 1..ATTEMPTS;
    loop {
        match attempt() {
            Err(ProbeError::Slow) if more.next().is_some() => {}
            result => return result,
        }
    }
}

fn attempt() -> Result<Duration, ProbeError> {
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(ProbeError::Version(version));
    }
    for (capability, name) in [
        (Cap::Irqchip, "interrupt controllers (KVM_CAP_IRQCHIP)"),
        (Cap::Irqfd, "interrupts by descriptors (KVM_CAP_IRQFD)"),
        (Cap::Ioeventfd, "notifications by descriptors (KVM_CAP_IOEVENTFD)"),
        (Cap::IrqRouting, "message-signalled interrupts (KVM_CAP_IRQ_ROUTING)"),
        (Cap::ImmediateExit, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"),
        (Cap::UserMemory, "memory of its user's (KVM_CAP_USER_MEMORY)"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(ProbeError::Lacks(name));
        }
    }
    vcpu::install_kick().map_err(make)?;
    let memory = memory::allocate(layout::KERNEL * 2).map_err(make)?;
    let program = program();
    memory.write_slice(&program, GuestAddress(layout::KERNEL)).map_err(make)?;
    crate::boot::identity_map(&memory).map_err(make)?;
    let vm = kvm.create_vm().map_err(make)?;
    vm.set_tss_address(layout::TSS).map_err(make)?;
    // SAFETY: `memory` outlives `vm` and its CPU, which this function ends with.
    unsafe { memory::give(&vm, &memory) }.map_err(make)?;
    let mut cpu = vm.create_vcpu(0).map_err(make)?;
    let features = Features::new(&kvm, 1).map_err(make)?;
    vcpu::identify(&cpu, 0, &features).map_err(make)?;
    vcpu::point(&cpu, Entry::Linux64(layout::KERNEL), &memory).map_err(make)?;
    let started = Instant::now();
    let sum = run_until(&mut cpu, started + DEADLINE)?;
    let taken = started.elapsed();
    if sum == result() { Ok(taken) } else { Err(ProbeError::Wrong(format!("a sum came to {sum:#x}"))) }
}

/// Runs the program, in this thread, while another watches the clock.
fn run_until(cpu: &mut kvm_ioctls::VcpuFd, deadline: Instant) -> Result<u64, ProbeError> {
    // SAFETY: the thread that has it ends before this function does, and the CPU is the caller's.
    let watched = unsafe { vcpu::Watched::new(cpu) };
    let (done, finished) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            // Either the sender is gone, and all is well, or the time is over.
            if finished.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                == Err(mpsc::RecvTimeoutError::Timeout)
            {
                watched.kick();
            }
        });
        let sum = collect(cpu, deadline);
        drop(done);
        sum
    })
}

fn collect(cpu: &mut kvm_ioctls::VcpuFd, deadline: Instant) -> Result<u64, ProbeError> {
    let mut halves = Vec::new();
    while halves.len() < 2 {
        match cpu.run() {
            Ok(VcpuExit::IoOut(RESULT_PORT, bytes)) => {
                let half = bytes.try_into().map_err(|_| ProbeError::Wrong("a number has the wrong size".to_owned()))?;
                halves.push(u64::from(u32::from_le_bytes(half)));
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(ProbeError::Wrong(error.to_string())),
            Ok(other) => return Err(ProbeError::Wrong(format!("it stopped with {other:?}"))),
        }
        if Instant::now() >= deadline {
            return Err(ProbeError::Slow);
        }
    }
    Ok(halves[0] | halves[1] << 32)
}
