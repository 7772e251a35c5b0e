//! Which interrupt leads where: KVM's table of interrupt routes, which it takes as a whole.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::board::lock;
use crate::layout;

/// A message-signalled interrupt: what is written where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// The address.
    pub address: u64,
    /// The value.
    pub data: u32,
}

/// A machine's interrupt routes.
pub struct Routes {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, Message>>,
}

impl Routes {
    /// Those of a machine without message-signalled interrupts. KVM is told with the first of these.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, messages: Mutex::default() }
    }

    /// Leads an interrupt to a message.
    ///
    /// # Errors
    /// If KVM refuses it, as it does addresses that are none of an interrupt controller's. The route is then as before.
    pub fn lead(&self, gsi: u32, message: Message) -> io::Result<()> {
        let mut messages = lock(&self.messages);
        let before = messages.insert(gsi, message);
        let result = self.tell(&messages);
        if result.is_err() {
            match before {
                Some(before) => messages.insert(gsi, before),
                None => messages.remove(&gsi),
            };
        }
        result
    }

    fn tell(&self, messages: &BTreeMap<u32, Message>) -> io::Result<()> {
        let mut entries: Vec<_> = (0..layout::IO_APIC_PINS).map(pin).collect();
        entries.extend(messages.iter().map(|(gsi, message)| message_route(*gsi, *message)));
        let table = KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }

    /// Has a descriptor raise an interrupt. What was signalled before is raised at once.
    ///
    /// # Errors
    /// As KVM_IRQFD.
    pub fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.vm.register_irqfd(event, gsi)?)
    }

    /// Ends that. What is signalled from now on is kept in the descriptor.
    ///
    /// # Errors
    /// As KVM_IRQFD.
    pub fn disconnect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(event, gsi)?)
    }
}

fn pin(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
    entry
}

fn message_route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}
