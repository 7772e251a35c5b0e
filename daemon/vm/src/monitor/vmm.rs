//! The machine in duet-vmm, on KVM.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use duet_control::protocol::ExitReason;
use duet_control::step::{Step, StepError};
use duet_sys::socket;
use duet_vmm::control::{Reply, Request};
use duet_vmm::image::Format;
use duet_vmm::power::Ending;
use duet_vmm::spec::{DeviceSpec, Fd, JailSpec, SerialSpec, Spec};
use rustix::fs::MemfdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::boot::{CONSOLE_WORDS, Files, c_string};
use super::process::Program;
use crate::spec::{FdIndex, LayerFormat, LayerSpec, VmSpec};

/// The guest's number on its vsock. It means nothing on the host.
const GUEST: u32 = 3;
/// The kernel's own mover of packets, where the host has it.
const VHOST: &str = "/dev/vhost-net";
/// The name of the control socket in the run directory, for a moment.
const SOCKET_NAME: &str = "machine.sock";

/// What the machine runs with, and the monitor's ends of it.
pub(super) struct Prepared {
    pub program: Program,
    pub control: Control,
    /// What the guest writes, and where what is typed goes.
    pub console: (OwnedFd, OwnedFd),
}

/// Makes everything that the machine inherits. `agent` is the socket at which its vsock device listens.
pub(super) fn prepare(
    spec: &VmSpec,
    files: &mut Files,
    run_dir: &OwnedFd,
    agent: OwnedFd,
    complaints: OwnedFd,
) -> Result<Prepared, StepError> {
    let (listener, control) = control_socket(run_dir)?;
    // Pipes, because they take single bytes without a buffer for each: what does not fit is lost (duet_vmm::serial).
    let (output, output_theirs) = pipe_with(PipeFlags::CLOEXEC).step("make the console")?;
    let (input_theirs, input) = pipe_with(PipeFlags::CLOEXEC).step("make the console")?;
    let serial = SerialSpec { input: Some(input_theirs.as_raw_fd()), output: output_theirs.as_raw_fd() };
    let mut inherited = vec![output_theirs, input_theirs];
    let mut take = |fd: OwnedFd| {
        let number = fd.as_raw_fd();
        inherited.push(fd);
        number
    };
    let vhosts = spec.nics.iter().map(|_| File::options().read(true).write(true).open(VHOST).ok());
    let vhosts: Vec<Option<Fd>> = vhosts.map(|file| file.map(|file| take(file.into()))).collect();
    let (listener, agent) = (take(listener), take(agent));
    let wires = Wires { serial, control: listener, agent, vhosts };
    let description = describe(spec, &wires, |index| files.take(index).map(&mut take))?;
    description.check().map_err(|error| StepError::new("describe the machine", error))?;
    let text = serde_json::to_vec(&description).map_err(|error| StepError::new("describe the machine", error))?;
    let mut stdin = File::from(rustix::fs::memfd_create(c"machine", MemfdFlags::CLOEXEC).step("describe the machine")?);
    stdin.write_all(&text).and_then(|()| stdin.rewind()).step("describe the machine")?;
    let path = c_string(spec.program.as_os_str())?;
    let program = Program {
        argv: vec![c_string(format!("[duet machine] {}", spec.name))?, c_string("-")?],
        path,
        stdin: stdin.into(),
        complaints,
        inherited,
        user: None,
    };
    Ok(Prepared { program, control, console: (output, input) })
}

/// What the machine is connected with besides what the specification names.
struct Wires {
    serial: SerialSpec,
    control: Fd,
    agent: Fd,
    /// For each network interface.
    vhosts: Vec<Option<Fd>>,
}

/// The description that duet-vmm reads. `number` turns an index into a descriptor's number.
fn describe(
    spec: &VmSpec,
    wires: &Wires,
    mut number: impl FnMut(FdIndex) -> Result<Fd, StepError>,
) -> Result<Spec, StepError> {
    let format = |layer: &LayerSpec| match layer.format {
        LayerFormat::Raw => Format::Raw,
        LayerFormat::Qcow2 => Format::Qcow2,
    };
    let mut devices = Vec::new();
    for disk in &spec.disks {
        let mut layers = Vec::new();
        for layer in &disk.layers {
            layers.push(duet_vmm::spec::LayerSpec { file: number(layer.file)?, format: format(layer) });
        }
        let mut layers = layers.into_iter();
        let top = layers.next().ok_or_else(|| StepError::new("describe the machine", "a disk has no layer"))?;
        devices.push(DeviceSpec::Disk {
            file: top.file,
            format: top.format,
            backing: layers.collect(),
            read_only: disk.read_only,
            name: disk.serial.clone(),
            limits: Default::default(),
        });
    }
    for (nic, vhost) in spec.nics.iter().zip(&wires.vhosts) {
        let (tap, vhost) = (number(nic.tap)?, *vhost);
        devices.push(DeviceSpec::Nic { tap, mac: nic.mac, mtu: nic.mtu, vhost, limits: Default::default() });
    }
    devices.push(DeviceSpec::Vsock { cid: GUEST, socket: wires.agent });
    devices.extend([DeviceSpec::Rng, DeviceSpec::Balloon]);
    Ok(Spec {
        kernel: number(spec.kernel)?,
        initrd: Some(number(spec.initrd)?),
        command_line: format!("{CONSOLE_WORDS} {}", spec.command_line),
        cpus: spec.cpus,
        memory: spec.whole_memory(),
        serial: Some(wires.serial.clone()),
        devices,
        jail: Some(JailSpec { uid: spec.user.uid, gid: spec.user.gid }),
        control: Some(wires.control),
    })
}

/// A listening socket and the one connection to it that there is: its name is gone again at once.
fn control_socket(run_dir: &OwnedFd) -> Result<(OwnedFd, Control), StepError> {
    let step = "make the machine's control socket";
    let listener = socket::listen_in(run_dir, SOCKET_NAME.as_ref(), 1).step(step)?;
    let path = std::path::PathBuf::from(format!("/proc/self/fd/{}", run_dir.as_raw_fd()));
    let connected = socket::connect_in(&path, SOCKET_NAME.as_ref());
    rustix::fs::unlinkat(run_dir, SOCKET_NAME, rustix::fs::AtFlags::empty()).step(step)?;
    let socket = connected.step(step)?;
    socket::set_nonblocking(&socket, true).step(step)?;
    let mut control = Control { socket: Some(socket), answered: false };
    // It is answered once the machine runs.
    control.say(&Request::Status)?;
    Ok((listener, control))
}

/// The connection to the machine's control socket.
#[derive(Debug)]
pub(super) struct Control {
    /// Until its end.
    socket: Option<OwnedFd>,
    answered: bool,
}

impl Control {
    pub fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Whether the machine runs.
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Presses the power button.
    pub fn power_button(&mut self) -> Result<(), StepError> {
        self.say(&Request::PowerButton)
    }

    /// Reads what there is, but not without end.
    pub fn read(&mut self) {
        let mut packet = [0; 4096];
        for _ in 0..16 {
            let Some(socket) = &self.socket else { return };
            match socket::receive(socket, &mut packet) {
                Ok(received) if received.len > 0 => {
                    let reply = serde_json::from_slice(&packet[..received.len]);
                    self.answered |= matches!(reply, Ok(Reply::Status { .. }));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                _ => self.socket = None,
            }
        }
    }

    fn say(&mut self, request: &Request) -> Result<(), StepError> {
        let step = "tell the machine";
        let socket = self.socket.as_ref().ok_or_else(|| StepError::new(step, "it does not listen any more"))?;
        let text = serde_json::to_vec(request).map_err(|error| StepError::new(step, error))?;
        socket::send(socket, &text, &[]).step(step)
    }
}

/// What the status means with which duet-vmm exited.
pub(super) fn reason(code: i32) -> ExitReason {
    match code {
        code if code == i32::from(Ending::PowerOff.status()) => ExitReason::Halt,
        code if code == i32::from(Ending::Reset.status()) => ExitReason::Reboot,
        code => ExitReason::Exited { code },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::example;

    #[test]
    fn the_description_is_that_of_the_specification() {
        let serial = SerialSpec { input: Some(21), output: 22 };
        let wires = Wires { serial: serial.clone(), control: 23, agent: 24, vhosts: vec![Some(25)] };
        let described = describe(&example(), &wires, |index| Ok(10 + Fd::try_from(index).unwrap())).unwrap();
        described.check().unwrap();
        let layer = |file, format| duet_vmm::spec::LayerSpec { file, format };
        let disk = |file, format, backing, read_only, name: &str| DeviceSpec::Disk {
            file,
            format,
            backing,
            read_only,
            name: name.to_owned(),
            limits: Default::default(),
        };
        let expected = Spec {
            kernel: 10,
            initrd: Some(11),
            command_line: "console=ttyS0 duet.root=serial:root, rw".to_owned(),
            cpus: 2,
            memory: 512 << 20,
            serial: Some(serial),
            devices: vec![
                disk(12, Format::Qcow2, vec![layer(13, Format::Raw)], false, "root,=\"x"),
                disk(14, Format::Raw, vec![], true, "data"),
                DeviceSpec::Nic {
                    tap: 15,
                    mac: [2, 0, 0, 0, 0, 0xab],
                    mtu: 1450,
                    vhost: Some(25),
                    limits: Default::default(),
                },
                DeviceSpec::Vsock { cid: GUEST, socket: 24 },
                DeviceSpec::Rng,
                DeviceSpec::Balloon,
            ],
            jail: Some(JailSpec { uid: 1000, gid: 1001 }),
            control: Some(23),
        };
        assert_eq!(described, expected);
        let mut descriptors = described.descriptors();
        descriptors.sort_unstable();
        assert_eq!(descriptors, [10, 11, 12, 13, 14, 15, 21, 22, 23, 24, 25]);
    }

    #[test]
    fn statuses_tell_how_it_ended() {
        assert_eq!(reason(0), ExitReason::Halt);
        assert_eq!(reason(10), ExitReason::Reboot);
        assert_eq!(reason(11), ExitReason::Exited { code: 11 });
        assert_eq!(reason(1), ExitReason::Exited { code: 1 });
    }
}
