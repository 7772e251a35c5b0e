//! Mounts and devices of the running container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::props;
use super::server::Running;
use super::task::{Purpose, Task};
use crate::inside::hotplug::Action;
use crate::inside::mounts::NODES_DIR;
use crate::spec::{DeviceNode, MountSpec};
use crate::step::{Step, StepError};

/// How a change goes on.
pub(super) enum Outcome {
    /// It is done.
    Done,
    /// A helper is at it.
    Started(Task),
}

/// Mounts a detached mount in the container.
pub(super) fn attach_mount(
    running: &mut Running,
    wanted: &MountSpec,
    source: OwnedFd,
    connection: u64,
) -> Result<Outcome, StepError> {
    let userns = running.userns.as_ref().map(AsFd::as_fd);
    let mount = props::prepare_mount(source, wanted, running.idmap, userns).step("prepare the mount")?;
    let name = running.stage.offer(mount.as_fd())?;
    drop(mount);
    let action = Action::Attach { name: name.clone(), target: wanted.target.clone(), recursive: wanted.recursive };
    let started = Task::run_helper(running, Purpose::Attach { offered: name.clone() }, &action, connection);
    if started.is_err() {
        running.stage.withdraw(&name)?;
    }
    started.map(Outcome::Started)
}

/// Undoes a mount in the container.
pub(super) fn detach_mount(running: &Running, target: &Path, connection: u64) -> Result<Outcome, StepError> {
    let action = Action::Detach { target: target.to_owned() };
    Task::run_helper(running, Purpose::Change, &action, connection).map(Outcome::Started)
}

/// Makes a device node in the container: directly if it is below /dev, else in a hidden place from which it is bound.
pub(super) fn attach_device(running: &mut Running, device: &DeviceNode, connection: u64) -> Result<Outcome, StepError> {
    if let Ok(below) = device.target.strip_prefix("/dev") {
        running.dev.add(below, device).step_at("make the device", &device.target)?;
        return Ok(Outcome::Done);
    }
    running.nodes += 1;
    let node = Path::new(NODES_DIR).join(format!("plugged-{}", running.nodes));
    running.dev.add(&node, device).step_at("make the device", &device.target)?;
    let action = Action::BindNode { node: Path::new("/dev").join(node), target: device.target.clone() };
    Task::run_helper(running, Purpose::Change, &action, connection).map(Outcome::Started)
}

/// Removes a device node from the container.
pub(super) fn detach_device(running: &Running, target: &Path, connection: u64) -> Result<Outcome, StepError> {
    match target.strip_prefix("/dev") {
        Ok(below) => {
            running.dev.remove(below).step_at("remove the device", &target)?;
            Ok(Outcome::Done)
        }
        Err(_) => detach_mount(running, target, connection),
    }
}
