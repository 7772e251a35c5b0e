//! The CPUs: the state in which each starts, a thread for each, and the gate at which they can be held.
//!
//! A CPU is kicked out of the guest by a signal whose handler does nothing. So that a kick between two runs is not lost,
//! `immediate_exit` of the page that KVM shares with the thread is set first (Documentation/virt/kvm/api.rst, 5).

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::board::{Board, lock};
use crate::boot::Entry;
use crate::cpuid::Features;
use crate::layout;
use crate::memory::Memory;
use crate::power::Ending;

/// Why a CPU cannot start.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// What KVM says.
    #[error("KVM cannot {step} CPU {cpu}: {source}")]
    Kvm {
        /// What was being done.
        step: &'static str,
        /// To which.
        cpu: u8,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// More features than KVM takes.
    #[error("KVM has more CPU features here than can be told to a guest")]
    Features,
    /// No thread, or no signal handler.
    #[error("a CPU's thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// No memory where the descriptor table belongs.
    #[error("the first CPU's descriptor table has no memory")]
    Table,
}

// Bits of the control registers and of EFER (Intel SDM 3A, 2.5 and 2.2.1).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS: u64 = 2;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Range registers are on, and what they do not name is write-back: what memory is.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Descriptors of flat code and data segments (Intel SDM 3A, 3.4.5): at 0x10 and 0x18, where a bzImage wants them.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bit = |at: u32| (descriptor >> at & 1) as u8;
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: bit(44),
        present: bit(47),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        ..Default::default()
    }
}

/// Tells a CPU what it is.
///
/// # Errors
/// What KVM says.
pub fn identify(vcpu: &VcpuFd, cpu: u8, features: &Features) -> Result<(), VcpuError> {
    let cpuid = features.of(cpu).map_err(|_| VcpuError::Features)?;
    vcpu.set_cpuid2(&cpuid).map_err(|source| VcpuError::Kvm { step: "describe", cpu, source })?;
    let memory_type = kvm_msr_entry { index: MSR_MTRR_DEFAULT_TYPE, data: MTRR_WRITE_BACK, ..Default::default() };
    let msrs = Msrs::from_entries(&[memory_type]).map_err(|_| VcpuError::Features)?;
    vcpu.set_msrs(&msrs).map_err(|source| VcpuError::Kvm { step: "set the memory type of", cpu, source })?;
    Ok(())
}

/// Puts the first CPU where the kernel begins. The others wait for it to start them.
///
/// # Errors
/// What KVM says.
pub fn point(vcpu: &VcpuFd, entry: Entry, memory: &Memory) -> Result<(), VcpuError> {
    let failed = |source| VcpuError::Kvm { step: "prepare", cpu: 0, source };
    let code = if matches!(entry, Entry::Linux64(_)) { CODE_64 } else { CODE_32 };
    let table: Vec<u8> = [0, 0, code, DATA].into_iter().flat_map(u64::to_le_bytes).collect();
    memory.write_slice(&table, GuestAddress(layout::GDT)).map_err(|_| VcpuError::Table)?;

    let mut special = vcpu.get_sregs().map_err(failed)?;
    special.gdt.base = layout::GDT;
    special.gdt.limit = table.len() as u16 - 1;
    special.cs = segment(CODE_SELECTOR, code);
    let data = segment(DATA_SELECTOR, DATA);
    (special.ds, special.es, special.ss, special.fs, special.gs) = (data, data, data, data, data);
    let mut regs = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match entry {
        Entry::Linux64(address) => {
            special.cr0 = CR0_PE | CR0_ET | CR0_PG;
            special.cr3 = layout::PAGE_TABLES;
            special.cr4 = CR4_PAE;
            special.efer = EFER_LME | EFER_LMA;
            regs.rip = address;
            regs.rsi = layout::ZERO_PAGE;
        }
        Entry::Pvh(address) => {
            special.cr0 = CR0_PE | CR0_ET;
            regs.rip = address;
            regs.rbx = layout::PVH_INFO;
        }
    }
    vcpu.set_sregs(&special).map_err(failed)?;
    vcpu.set_regs(&regs).map_err(failed)
}

/// What the CPUs are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Hold,
    Leave,
}

/// The gate that each CPU passes before it runs.
struct Gate {
    /// The order, and how many CPUs stand at the gate or have left.
    state: Mutex<(Order, usize)>,
    changed: Condvar,
}

impl Gate {
    /// Waits for leave to run. `None`: the thread is to end. `Some(true)`: the CPU was held.
    fn pass(&self) -> Option<bool> {
        let mut state = lock(&self.state);
        let mut held = false;
        while state.0 == Order::Hold {
            if !held {
                held = true;
                state.1 += 1;
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if held {
            state.1 -= 1;
        }
        (state.0 == Order::Run).then_some(held)
    }

    /// The CPU will not come back.
    fn leave(&self) {
        lock(&self.state).1 += 1;
        self.changed.notify_all();
    }
}

struct Cpu {
    /// `immediate_exit` in the mapping of the `VcpuFd` that the thread owns and its handle yields.
    exit_now: AtomicPtr<u8>,
    thread: JoinHandle<VcpuFd>,
}

/// The running CPUs. They end with it.
pub struct Cpus {
    gate: Arc<Gate>,
    cpus: Vec<Cpu>,
}

extern "C" fn nothing(_: libc::c_int) {}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the signal that kicks CPUs harmless. Call it before the first thread that is kicked.
///
/// # Errors
/// If the kernel refuses the handler.
pub fn install_kick() -> io::Result<()> {
    let action = libc::sigaction {
        sa_sigaction: nothing as extern "C" fn(libc::c_int) as usize,
        // SAFETY: an empty set and no flags: all zeros.
        ..unsafe { std::mem::zeroed() }
    };
    // SAFETY: the handler does nothing, and so nothing that a handler may not.
    let result = unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has a thread's CPU leave the guest, now or before it next enters it.
///
/// # Safety
/// `exit_now` points to `immediate_exit` of a mapping that is still there.
unsafe fn kick(exit_now: *mut u8, thread: libc::pthread_t) {
    // SAFETY: the caller says that it is mapped. Of this byte KVM reads a copy only, and all others write it here.
    unsafe { AtomicU8::from_ptr(exit_now) }.store(1, Ordering::SeqCst);
    // SAFETY: the thread was not joined yet; if it ended already, nothing happens.
    unsafe { libc::pthread_kill(thread, kick_signal()) };
}

/// A CPU that the calling thread runs, for another that may have to interrupt it.
pub struct Watched {
    exit_now: AtomicPtr<u8>,
    thread: libc::pthread_t,
}

impl Watched {
    /// The calling thread's CPU.
    ///
    /// # Safety
    /// The result is used no longer than the CPU is there and the calling thread runs.
    pub unsafe fn new(vcpu: &mut VcpuFd) -> Self {
        let exit_now = AtomicPtr::new(&raw mut vcpu.get_kvm_run().immediate_exit);
        // SAFETY: pthread_self has no conditions.
        Self { exit_now, thread: unsafe { libc::pthread_self() } }
    }

    /// Has the CPU leave the guest.
    pub fn kick(&self) {
        // SAFETY: `new` is unsafe for this.
        unsafe { kick(self.exit_now.load(Ordering::Relaxed), self.thread) };
    }
}

impl Cpus {
    /// Starts the CPUs, numbered as in `vcpus`.
    ///
    /// # Errors
    /// If there is no room for a thread.
    pub fn start(vcpus: Vec<VcpuFd>, board: &Arc<Board>) -> Result<Self, VcpuError> {
        install_kick().map_err(VcpuError::Thread)?;
        let gate = Arc::new(Gate { state: Mutex::new((Order::Run, 0)), changed: Condvar::new() });
        let mut started = Self { gate, cpus: Vec::new() };
        for (number, mut vcpu) in vcpus.into_iter().enumerate() {
            let exit_now = AtomicPtr::new(&raw mut vcpu.get_kvm_run().immediate_exit);
            let (gate, board) = (Arc::clone(&started.gate), Arc::clone(board));
            let thread = thread::Builder::new()
                .name(format!("cpu{number}"))
                .spawn(move || {
                    run(&mut vcpu, &board, &gate);
                    gate.leave();
                    vcpu
                })
                .map_err(VcpuError::Thread)?;
            started.cpus.push(Cpu { exit_now, thread });
        }
        Ok(started)
    }

    /// Holds all CPUs; when this returns, none runs.
    pub fn pause(&self) {
        self.order(Order::Hold);
        let mut state = lock(&self.gate.state);
        while state.0 == Order::Hold && state.1 < self.cpus.len() {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets them run again.
    pub fn resume(&self) {
        self.order(Order::Run);
    }

    /// Whether they are held.
    #[must_use]
    pub fn paused(&self) -> bool {
        lock(&self.gate.state).0 == Order::Hold
    }

    fn order(&self, order: Order) {
        lock(&self.gate.state).0 = order;
        self.gate.changed.notify_all();
        if order != Order::Run {
            for cpu in &self.cpus {
                // SAFETY: the mapping is the `VcpuFd`'s, which lives until the thread is joined, in `drop` alone.
                unsafe { kick(cpu.exit_now.load(Ordering::Relaxed), cpu.thread.as_pthread_t()) };
            }
        }
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.order(Order::Leave);
        for cpu in self.cpus.drain(..) {
            // A thread that panicked has nothing to hand back.
            let _ = cpu.thread.join();
        }
    }
}

/// Runs a CPU until it is told to leave or cannot go on.
fn run(vcpu: &mut VcpuFd, board: &Board, gate: &Gate) {
    while let Some(held) = gate.pass() {
        if held {
            // So that the guest does not take the time for a lockup. Without its clock there is nothing to tell.
            let _ = vcpu.kvmclock_ctrl();
        }
        if let Some(ending) = step(vcpu, board) {
            board.power.end(ending);
            return;
        }
    }
}

/// Runs a CPU until something is to be done for it, and does that.
fn step(vcpu: &mut VcpuFd, board: &Board) -> Option<Ending> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, bytes)) => board.port_write(port, bytes),
        Ok(VcpuExit::IoIn(port, bytes)) => board.port_read(port, bytes),
        Ok(VcpuExit::MmioWrite(address, bytes)) => board.memory_write(address, bytes),
        Ok(VcpuExit::MmioRead(address, bytes)) => board.memory_read(address, bytes),
        Ok(VcpuExit::Intr | VcpuExit::Hlt) => {}
        Ok(VcpuExit::Shutdown) => return Some(Ending::TripleFault),
        Ok(VcpuExit::SystemEvent(kind, _)) => {
            return Some(match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Ending::PowerOff,
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => Ending::Reset,
                _ => Ending::Panic,
            });
        }
        Ok(other) => return Some(stuck(format_args!("{other:?}"))),
        Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => vcpu.set_kvm_immediate_exit(0),
        Err(error) => return Some(stuck(error)),
    }
    None
}

/// A CPU cannot go on. Why is told here, since nobody else learns it.
fn stuck(why: impl std::fmt::Display) -> Ending {
    // Where nobody listens there is nobody to tell.
    let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("duet-vmm: a CPU cannot go on: {why}\n"));
    Ending::Stuck
}
