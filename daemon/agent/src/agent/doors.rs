//! The ways in which a client comes: a vsock port and a virtio-serial port, whichever the machine has.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen, socket};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{Mode, OFlags};

use super::report;
use crate::protocol::{SERIAL_PORT, VSOCK_PORT};
use crate::uevent::Uevents;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The vsock listener.
    Vsock,
    /// The serial port has a host's side again, or lost it.
    Serial,
    /// A device came, which may be the serial port.
    Device,
}

pub(super) struct Doors {
    vsock: Option<OwnedFd>,
    serial: Option<Serial>,
    /// The kernel tells of ports one by one, after the driver was loaded.
    devices: Option<Uevents>,
}

impl Doors {
    pub fn new() -> Self {
        let mut doors = Self { vsock: None, serial: None, devices: Uevents::listen().ok() };
        doors.look_for_serial();
        match listen_on_vsock() {
            Ok(listener) => doors.vsock = Some(listener),
            // A machine without it has the port.
            Err(nix::errno::Errno::EAFNOSUPPORT) => {}
            Err(errno) => report(&format!("vsock port {VSOCK_PORT} cannot be listened on: {errno}")),
        }
        doors
    }

    /// What to wait for; the serial port is waited for only while it is not in use.
    pub fn fds(&self, engaged: bool) -> Vec<(Door, BorrowedFd<'_>)> {
        let mut fds = Vec::new();
        fds.extend(self.vsock.as_ref().map(|fd| (Door::Vsock, fd.as_fd())));
        fds.extend(self.serial.as_ref().filter(|_| !engaged).map(|serial| (Door::Serial, serial.changes.as_fd())));
        fds.extend(self.devices.as_ref().map(|devices| (Door::Device, devices.as_fd())));
        fds
    }

    /// The client that came, if one did.
    pub fn open(&mut self, door: Door) -> Option<OwnedFd> {
        match door {
            Door::Vsock => accept_host(self.vsock.as_ref()?),
            Door::Serial => self.serial.as_ref()?.client(),
            Door::Device => {
                self.devices.as_ref()?.take();
                self.look_for_serial();
                None
            }
        }
    }

    /// The client is gone.
    pub fn rest(&mut self) {
        if let Some(serial) = &self.serial
            && let Err(error) = serial.watch_anew()
        {
            report(&format!("the port {SERIAL_PORT} is lost: {error}"));
            self.serial = None;
        }
    }

    fn look_for_serial(&mut self) {
        if self.serial.is_some() {
            return;
        }
        match Serial::find() {
            Ok(Some(serial)) => {
                self.serial = Some(serial);
                // There is only one, and nothing else is looked for.
                self.devices = None;
            }
            Ok(None) => {}
            Err(error) => report(&format!("the port {SERIAL_PORT} cannot be opened: {error}")),
        }
    }
}

fn listen_on_vsock() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, VSOCK_PORT))?;
    listen(&listener, Backlog::new(4)?)?;
    Ok(listener)
}

/// Accepts a connection if it comes from the host. Any user of the guest could reach the port by the loopback address
/// (`VMADDR_CID_LOCAL`, vsock(7)), and would be root by it.
fn accept_host(listener: &OwnedFd) -> Option<OwnedFd> {
    let connection = duet_sys::socket::accept(listener).ok()??;
    let peer = getpeername::<VsockAddr>(connection.as_raw_fd()).ok()?;
    (peer.cid() == libc::VMADDR_CID_HOST).then_some(connection)
}

/// A virtio-serial port (Linux' drivers/char/virtio_console.c).
///
/// While the host's side is closed, poll(2) answers `POLLHUP` at once, so that waiting for it to be opened takes an
/// edge-triggered epoll(7): the driver wakes those who wait when it changes.
struct Serial {
    port: OwnedFd,
    changes: OwnedFd,
}

impl Serial {
    /// Looks the port up by its name: udev, which would make a link of that name, does not run yet.
    fn find() -> io::Result<Option<Self>> {
        let Ok(entries) = std::fs::read_dir("/sys/class/virtio-ports") else { return Ok(None) };
        for entry in entries {
            let entry = entry?;
            if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == SERIAL_PORT) {
                let device = std::path::Path::new("/dev").join(entry.file_name());
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let port = rustix::fs::open(device, flags, Mode::empty())?;
                let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                let serial = Self { port, changes };
                serial.watch()?;
                return Ok(Some(serial));
            }
        }
        Ok(None)
    }

    fn watch(&self) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::add(&self.changes, &self.port, epoll::EventData::new_u64(0), flags)?)
    }

    /// A newly added descriptor is reported once whatever its state, so that no change before is missed.
    fn watch_anew(&self) -> io::Result<()> {
        epoll::delete(&self.changes, &self.port)?;
        self.watch()
    }

    /// The port, if somebody has its other side.
    fn client(&self) -> Option<OwnedFd> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut space = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 1];
        epoll::wait(&self.changes, &mut space[..], Some(&now)).ok()?;
        let mut fds = [PollFd::new(&self.port, PollFlags::OUT)];
        poll(&mut fds, Some(&now)).ok()?;
        if fds[0].revents().contains(PollFlags::HUP) { None } else { self.port.try_clone().ok() }
    }
}
