//! Duet's own virtual machine monitor: one process is one KVM guest.
//!
//! A [`spec::Spec`] says what the machine is. [`machine::Machine`] puts it together: [`memory`] and what [`boot`] loads
//! into it (there is no firmware: a stock kernel is entered directly and finds the machine by its ACPI tables), the CPUs
//! ([`vcpu`]) and what they reach besides memory ([`board`]). The process ends with a status that says how the machine
//! ended ([`power::Ending`]).
//!
//! Devices are [`virtio`] functions on a [`pci`] bus. What a disk is made of on the host is an [`image`], and what a disk
//! or a network interface may do in a second is a [`limit`].
//!
//! *Threads.* The main thread waits for what comes from outside ([`events`]); each CPU has one, and so has each device
//! that a driver of the guest's uses.
//!
//! *Trust.* All that a guest writes is hostile: addresses go through vm-memory, which knows where the guest's memory
//! ends; registers that do not exist read as ones; nothing that a guest does is an error of the process, except that its
//! own CPU cannot go on, which ends the machine. What a guest would find that broke out all the same is in [`confine`].

pub mod board;
pub mod boot;
pub mod confine;
pub mod control;
pub mod cpuid;
pub mod devices;
pub mod events;
pub mod image;
pub mod layout;
pub mod limit;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod power;
pub mod probe;
pub mod routes;
pub mod serial;
pub mod spec;
pub mod vcpu;
pub mod virtio;
