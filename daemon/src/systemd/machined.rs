//! Instances among the host's machines, as `machinectl` lists them.
//!
//! Interface: org.freedesktop.machine1.Manager(5): `RegisterMachineWithNetwork(s name, ay id, s service, s class, u leader,
//! s root_directory, ai netif)` for a unit that exists already, found by the leader's process, and
//! `UnregisterMachine(s name)`. The service is started by the bus on demand; where it is not installed nothing is done.
//! machined forgets a machine by itself when its scope is gone, so that a daemon which dies in between leaves nothing.

use std::path::Path;

use super::{Error, Service, Systemd};

const MACHINES: Service = Service {
    name: "org.freedesktop.machine1",
    path: "/org/freedesktop/machine1",
    interface: "org.freedesktop.machine1.Manager",
};

const NOT_TAKEN: &str = "systemd-machined takes no instance";
const KEPT: &str = "systemd-machined keeps an instance that has ended";

/// What it answers about a machine that it does not know.
const NO_SUCH_MACHINE: &str = "org.freedesktop.machine1.NoSuchMachine";
/// What it answers about one that it knows already.
const MACHINE_EXISTS: &str = "org.freedesktop.machine1.MachineExists";

impl Systemd {
    /// Registers a running instance of a class ("container" or "vm"), whose init, or whose machine's process, is `leader`
    /// and whose links on the host are `links`.
    pub async fn register_machine(&self, instance: &str, class: &str, leader: u32, links: &[String]) {
        if !self.present {
            return;
        }
        let indexes: Vec<i32> = links.iter().filter_map(|link| link_index(link)).collect();
        let body = (instance, Vec::<u8>::new(), "duet", class, leader, "", indexes);
        let mut answer = self.call(&MACHINES, "RegisterMachineWithNetwork", &body).await;
        if answer.as_ref().is_err_and(|error| error.name().as_deref() == Some(MACHINE_EXISTS)) {
            // Of a run of it that has just ended.
            self.unregister_machine(instance).await;
            answer = self.call(&MACHINES, "RegisterMachineWithNetwork", &body).await;
        }
        match answer {
            Ok(_) => self.works(NOT_TAKEN),
            // machined may have been started for this, and the instance have ended meanwhile.
            Err(_) if !Path::new(&format!("/proc/{leader}")).exists() => {}
            Err(error) if error.is_absent() => {}
            Err(error) => self.complain(NOT_TAKEN, &error),
        }
    }

    /// Takes an instance off the list.
    pub async fn unregister_machine(&self, instance: &str) {
        if !self.present {
            return;
        }
        match self.call(&MACHINES, "UnregisterMachine", &(instance,)).await {
            Err(error) if !error.is_absent() && !is_unknown(&error) => self.complain(KEPT, &error),
            _ => {}
        }
    }
}

fn is_unknown(error: &Error) -> bool {
    error.name().as_deref() == Some(NO_SUCH_MACHINE)
}

/// A link's index on the host.
fn link_index(name: &str) -> Option<i32> {
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}
