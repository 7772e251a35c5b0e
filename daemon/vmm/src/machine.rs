//! A machine: put together, running, ended.
//!
//! What takes time at the start is done at the same time: KVM makes the machine while the files are read into memory.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use thiserror::Error;

use crate::board::{Board, lock};
use crate::boot::{self, BootError};
use crate::confine::{self, ConfineError};
use crate::cpuid::Features;
use crate::image::ImageError;
use crate::memory::{self, Memory, MemoryError};
use crate::power::{Ending, Power};
use crate::spec::{Fd, JailSpec, SerialSpec, Spec, SpecError};
use crate::vcpu::{self, Cpus, VcpuError};
use crate::{devices, events, layout, serial};

/// Why there is no machine.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The description is none.
    #[error("{0}")]
    Spec(#[from] SpecError),
    /// No memory.
    #[error("{0}")]
    Memory(#[from] MemoryError),
    /// No kernel.
    #[error("{0}")]
    Boot(#[from] BootError),
    /// A disk.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// A CPU.
    #[error("{0}")]
    Vcpu(#[from] VcpuError),
    /// The process has too many rights.
    #[error("{0}")]
    Confine(#[from] ConfineError),
    /// What KVM says.
    #[error("KVM cannot {step}: {source}")]
    Kvm {
        /// What was being done.
        step: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Too many CPUs for this host.
    #[error("KVM makes at most {most} CPUs here, not {wanted}")]
    TooManyCpus {
        /// How many it makes.
        most: usize,
        /// How many there should be.
        wanted: u8,
    },
    /// A descriptor that is named but not open, or is named twice.
    #[error("the description names descriptor {0}, which is not open or is already used for something else")]
    Descriptor(Fd),
    /// A descriptor or thread that could not be made.
    #[error("the machine cannot {step}: {source}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn kvm_failed(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { step, source }
}

pub(crate) fn host_failed(step: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { step, source }
}

/// The descriptors that the process inherited: each is taken once.
#[derive(Debug)]
pub struct Inherited {
    left: Vec<Fd>,
}

impl Inherited {
    /// All that a description names. Call it before anything is opened, which could have one of their numbers.
    ///
    /// # Errors
    /// If one is not open, is the standard error, or is named twice.
    pub fn of(spec: &Spec) -> Result<Self, MachineError> {
        let mut left: Vec<Fd> = Vec::new();
        for fd in spec.descriptors() {
            // SAFETY: F_SETFD takes a number, and of a descriptor that is not open it says so.
            let open = fd >= 0
                && fd != libc::STDERR_FILENO
                && unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
            if !open || left.contains(&fd) {
                return Err(MachineError::Descriptor(fd));
            }
            left.push(fd);
        }
        Ok(Self { left })
    }

    /// Takes a descriptor, which is closed with what it becomes.
    ///
    /// # Errors
    /// If the description does not name it, or it was taken already.
    pub fn take<T: From<OwnedFd>>(&mut self, fd: Fd) -> Result<T, MachineError> {
        let at = self.left.iter().position(|left| *left == fd).ok_or(MachineError::Descriptor(fd))?;
        self.left.swap_remove(at);
        // SAFETY: it was open before this process opened anything of its own, and is taken once.
        Ok(T::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the two directions of a console, which may be one descriptor.
    ///
    /// # Errors
    /// As [`Inherited::take`].
    pub fn ends(&mut self, spec: &SerialSpec) -> Result<(Option<File>, File), MachineError> {
        let output: File = self.take(spec.output)?;
        let input = match spec.input {
            Some(fd) if fd == spec.output => Some(output.try_clone().map_err(host_failed("share a descriptor"))?),
            Some(fd) => Some(self.take(fd)?),
            None => None,
        };
        Ok((input, output))
    }
}

/// A machine that is ready to run.
pub struct Machine {
    vm: Arc<VmFd>,
    memory: Memory,
    vcpus: Vec<VcpuFd>,
    board: Arc<Board>,
    outside: events::Outside,
    jail: Option<JailSpec>,
}

impl Machine {
    /// Puts the machine together.
    ///
    /// # Errors
    /// If something of it is missing or not right; nothing is left then.
    pub fn new(spec: &Spec) -> Result<Self, MachineError> {
        spec.check()?;
        let mut inherited = Inherited::of(spec)?;
        let kernel = inherited.take(spec.kernel)?;
        let initrd = spec.initrd.map(|fd| inherited.take(fd)).transpose()?;
        let (input, output) = match &spec.serial {
            Some(serial) => inherited.ends(serial).map(|(input, output)| (input, Some(output)))?,
            None => (None, None),
        };
        let control = spec.control.map(|fd| inherited.take(fd)).transpose()?;
        let balloon = Arc::default();
        let devices = spec.devices.iter().map(|device| devices::make(device, &mut inherited, &balloon, spec.cpus));
        let devices = devices.collect::<Result<Vec<_>, _>>()?;

        let memory = memory::allocate(spec.memory)?;
        let tables = boot::acpi::tables(spec.cpus)?;
        let (made, entry) = thread::scope(|scope| {
            let made = thread::Builder::new()
                .name("make".to_owned())
                .spawn_scoped(scope, || make(spec, &memory))
                .map_err(host_failed("start a thread"))?;
            let entry = boot::load(&memory, kernel, initrd, &spec.command_line, &tables);
            let made = made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, MachineError>((made, entry?))
        })?;
        let (vm, vcpus) = made?;
        let vm = Arc::new(vm);
        if let Some(first) = vcpus.first() {
            vcpu::point(first, entry, &memory)?;
        }

        let board = Board {
            serial: Mutex::new(serial::new(output).map_err(host_failed("make a serial port"))?),
            power: Power::new().map_err(host_failed("make a power button"))?,
            balloon,
            limits: devices.iter().map(|device| devices::limits(device.as_ref())).collect(),
            pci: devices::plug(devices, &vm, &memory).map_err(host_failed("plug its devices in"))?,
        };
        let line = kvm_failed("connect an interrupt");
        vm.register_irqfd(&lock(&board.serial).interrupt_evt().0, layout::SERIAL_GSI)
            .and_then(|()| vm.register_irqfd(&board.power.button, layout::POWER_BUTTON_GSI))
            .map_err(line)?;
        Ok(Self {
            vm,
            memory,
            vcpus,
            board: Arc::new(board),
            outside: events::Outside { input, control },
            jail: spec.jail,
        })
    }

    /// Runs it to its end, and gives up before that all rights of the process that this does not need: it is good for
    /// nothing else afterwards.
    ///
    /// # Errors
    /// If the process cannot give up its rights, or the CPUs cannot be started.
    pub fn run(self) -> Result<Ending, MachineError> {
        confine::enter(self.jail.as_ref())?;
        let cpus = Cpus::start(self.vcpus, &self.board)?;
        let ending = events::serve(self.outside, &self.board, &cpus).map_err(host_failed("wait for events"))?;
        drop(cpus);
        self.board.pci.stop();
        // What the CPUs and devices worked on goes only after them.
        drop((self.vm, self.memory));
        Ok(ending)
    }
}

/// Has KVM make the machine: its memory, interrupt controllers and CPUs.
fn make(spec: &Spec, memory: &Memory) -> Result<(VmFd, Vec<VcpuFd>), MachineError> {
    let kvm = Kvm::new().map_err(kvm_failed("be opened (/dev/kvm)"))?;
    if usize::from(spec.cpus) > kvm.get_max_vcpus() {
        return Err(MachineError::TooManyCpus { most: kvm.get_max_vcpus(), wanted: spec.cpus });
    }
    let features = Features::new(&kvm, spec.cpus).map_err(kvm_failed("say what its CPUs can do"))?;
    let vm = kvm.create_vm().map_err(kvm_failed("make a machine"))?;
    vm.set_tss_address(layout::TSS).map_err(kvm_failed("place its own pages"))?;
    vm.create_irq_chip().map_err(kvm_failed("make interrupt controllers"))?;
    // SAFETY: the machine keeps `memory` until its CPUs have ended.
    unsafe { memory::give(&vm, memory) }.map_err(kvm_failed("take the memory"))?;
    let vcpus = (0..spec.cpus)
        .map(|cpu| {
            let vcpu = vm.create_vcpu(cpu.into()).map_err(kvm_failed("make a CPU"))?;
            vcpu::identify(&vcpu, cpu, &features)?;
            Ok(vcpu)
        })
        .collect::<Result<_, MachineError>>()?;
    Ok((vm, vcpus))
}
