//! The socket device (virtio 1.2, 5.10): streams between the host and what listens in the guest.
//!
//! Not vhost-vsock: that needs a kernel module, a number that is unique on the host, and leads from every process of the
//! host to the guest. Here the host's side is a unix socket, to which the permissions of files apply. A client connects
//! to it, sends `CONNECT PORT` and a line feed, and gets `OK PORT` and a line feed once the guest has accepted, as with
//! Firecracker; what follows is the stream. If nobody listens in the guest, the connection is closed. The guest itself
//! cannot connect to the host: it is refused.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::event::PollFlags;

use super::queue::{Chain, Queue, Served};
use super::{Device, Driver, Stop, Thread, Worker};
use crate::events::{borrow, is_passing};
use crate::memory::Memory;

/// The host's number on its guests (virtio 1.2, 5.10.4.1).
const HOST: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`
const STREAM: u16 = 1;
/// The first port of the host's side of a connection; they count on from it.
const FIRST_PORT: u32 = 1 << 30;
/// The most connections at a time; more are closed at once.
const MOST: usize = 256;
/// How much the guest may send on a connection before its other end reads it, in bytes.
const ROOM: usize = 256 << 10;
/// The most data of one packet to the guest in bytes.
const PIECE: usize = 64 << 10;
/// The longest first line of a client in bytes.
const LONGEST_LINE: usize = 32;

/// What a packet does (virtio 1.2, 5.10.6).
mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RESET: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const DATA: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: no more is received, no more is sent.
const NO_RECEIVE: u32 = 1;
const NO_SEND: u32 = 2;

/// `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    from: u64,
    to: u64,
    from_port: u32,
    to_port: u32,
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    room: u32,
    taken: u32,
}

impl Header {
    const SIZE: usize = 44;

    fn parse(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            from: long(0),
            to: long(8),
            from_port: word(16),
            to_port: word(20),
            len: word(24),
            kind: word(28) as u16,
            op: (word(28) >> 16) as u16,
            flags: word(32),
            room: word(36),
            taken: word(40),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE);
        bytes.extend(self.from.to_le_bytes());
        bytes.extend(self.to.to_le_bytes());
        for word in [self.from_port, self.to_port, self.len] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        for word in [self.flags, self.room, self.taken] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    guest: u64,
    listener: Arc<UnixListener>,
}

impl Vsock {
    /// A device for the guest's number `guest`, 3 or more, and the host's socket, which listens.
    ///
    /// # Errors
    /// If the socket cannot be made non-blocking.
    pub fn new(guest: u32, listener: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self { guest: guest.into(), listener: Arc::new(listener) })
    }
}

impl Device for Vsock {
    fn kind(&self) -> u16 {
        19
    }

    /// Receive, transmit, events. Of the last there are none.
    fn queues(&self) -> &[u16] {
        &[128, 128, 8]
    }

    fn config(&self) -> Vec<u8> {
        self.guest.to_le_bytes().to_vec()
    }

    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>> {
        let (guest, listener) = (self.guest, Arc::clone(&self.listener));
        Thread::spawn("vsock", move |stop| {
            let Driver { memory, queues, .. } = driver;
            if let Ok([receive, transmit, _]) = <[Queue; 3]>::try_from(queues) {
                let hub = Hub { guest, connections: BTreeMap::new(), next_port: FIRST_PORT, replies: VecDeque::new() };
                Running { memory, receive, transmit, listener, hub }.run(&stop);
            }
        })
    }
}

/// How far a connection is.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The client has sent so much of its first line.
    Line(Vec<u8>),
    /// The guest was asked.
    Asked,
    /// Data flows.
    Open,
}

/// A client of the host's and its peer in the guest. The key that it has is the host's port.
#[derive(Debug)]
struct Connection {
    socket: UnixStream,
    stage: Stage,
    guest_port: u32,
    /// What the guest sent and the client has not taken.
    outgoing: VecDeque<u8>,
    /// How much of the guest's the client has taken, and how much of that the guest knows. They wrap.
    taken: u32,
    told: u32,
    /// What the guest says of its own side, and how much it was sent.
    guest_room: u32,
    guest_taken: u32,
    sent: u32,
    /// Who sends no more.
    client_ended: bool,
    guest_ended: bool,
}

impl Connection {
    /// How much may be sent to the guest. A guest that says that it took more than it was sent gets nothing.
    fn credit(&self) -> usize {
        self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_taken)) as usize
    }

    fn wants(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        let reads = match &self.stage {
            Stage::Line(_) => true,
            Stage::Asked => false,
            Stage::Open => self.credit() > 0 && !self.client_ended,
        };
        flags.set(PollFlags::IN, reads);
        flags.set(PollFlags::OUT, !self.outgoing.is_empty());
        flags
    }
}

/// All connections, and what the guest is to be told of them.
struct Hub {
    guest: u64,
    connections: BTreeMap<u32, Connection>,
    next_port: u32,
    replies: VecDeque<Header>,
}

impl Hub {
    fn header(&self, host_port: u32, guest_port: u32, op: u16) -> Header {
        let taken = self.connections.get(&host_port).map_or(0, |connection| connection.taken);
        let (from, to, room) = (HOST, self.guest, ROOM as u32);
        Header { from, to, from_port: host_port, to_port: guest_port, len: 0, kind: STREAM, op, flags: 0, room, taken }
    }

    fn reply(&mut self, host_port: u32, guest_port: u32, op: u16, flags: u32) {
        let header = Header { flags, ..self.header(host_port, guest_port, op) };
        if let Some(connection) = self.connections.get_mut(&host_port) {
            connection.told = header.taken;
        }
        self.replies.push_back(header);
    }

    fn add(&mut self, socket: UnixStream) {
        if self.connections.len() >= MOST || socket.set_nonblocking(true).is_err() {
            return;
        }
        while self.connections.contains_key(&self.next_port) {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
        }
        let connection = Connection {
            socket,
            stage: Stage::Line(Vec::new()),
            guest_port: 0,
            outgoing: VecDeque::new(),
            taken: 0,
            told: 0,
            guest_room: 0,
            guest_taken: 0,
            sent: 0,
            client_ended: false,
            guest_ended: false,
        };
        self.connections.insert(self.next_port, connection);
        self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
    }

    /// A connection is over. A guest that knows of it is told.
    fn remove(&mut self, port: u32) {
        if let Some(connection) = self.connections.get(&port) {
            let (known, guest_port) = (!matches!(connection.stage, Stage::Line(_)), connection.guest_port);
            if known {
                self.reply(port, guest_port, op::RESET, 0);
            }
            self.connections.remove(&port);
        }
    }

    /// Reads a client's first line, byte by byte, so that nothing of what follows is taken with it.
    fn read_line(&mut self, port: u32) {
        let Some(connection) = self.connections.get_mut(&port) else { return };
        let Stage::Line(line) = &mut connection.stage else { return };
        let mut byte = [0];
        loop {
            match connection.socket.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => break,
                Ok(1) if line.len() < LONGEST_LINE => line.push(byte[0]),
                Err(error) if is_passing(&error) => return,
                _ => return self.remove(port),
            }
        }
        let wanted = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("CONNECT "));
        let Some(guest_port) = wanted.and_then(|number| number.trim_end().parse().ok()) else {
            return self.remove(port);
        };
        connection.guest_port = guest_port;
        connection.stage = Stage::Asked;
        self.reply(port, guest_port, op::REQUEST, 0);
    }

    /// Writes to a client what it takes of what the guest sent.
    fn flush(&mut self, port: u32) {
        let Some(connection) = self.connections.get_mut(&port) else { return };
        while !connection.outgoing.is_empty() {
            let (first, _) = connection.outgoing.as_slices();
            match connection.socket.write(first) {
                Ok(written) if written > 0 => {
                    connection.outgoing.drain(..written);
                    connection.taken = connection.taken.wrapping_add(written as u32);
                }
                Err(error) if is_passing(&error) => break,
                _ => return self.remove(port),
            }
        }
        let guest_port = connection.guest_port;
        if connection.outgoing.is_empty() && connection.guest_ended {
            if connection.client_ended {
                return self.remove(port);
            }
            let _ = connection.socket.shutdown(std::net::Shutdown::Write);
        }
        // Before the guest thinks that there is little room left.
        if connection.taken.wrapping_sub(connection.told) as usize >= ROOM / 4 {
            self.reply(port, guest_port, op::CREDIT_UPDATE, 0);
        }
    }

    /// A packet of the guest's.
    fn receive(&mut self, mut chain: Chain<'_>) {
        let Some(header) = chain.readable.array().map(|bytes| Header::parse(&bytes)) else { return };
        if header.from != self.guest || header.to != HOST {
            return;
        }
        let (port, guest_port) = (header.to_port, header.from_port);
        let known = self.connections.get_mut(&port).filter(|connection| {
            connection.guest_port == guest_port && !matches!(connection.stage, Stage::Line(_)) && header.kind == STREAM
        });
        let Some(connection) = known else {
            if header.op != op::RESET {
                self.reply(port, guest_port, op::RESET, 0);
            }
            return;
        };
        connection.guest_room = header.room;
        connection.guest_taken = header.taken;
        match header.op {
            op::RESPONSE if connection.stage == Stage::Asked => {
                connection.stage = Stage::Open;
                // This is the host's own answer to its client, and does not count against the guest's room.
                if writeln!(connection.socket, "OK {port}").is_err() {
                    self.remove(port);
                }
            }
            op::DATA if connection.stage == Stage::Open => {
                let len = header.len as usize;
                if len > chain.readable.len() || connection.outgoing.len() + len > ROOM || connection.guest_ended {
                    return self.remove(port);
                }
                let mut data = vec![0; len];
                chain.readable.read(&mut data);
                connection.outgoing.extend(data);
                self.flush(port);
            }
            op::SHUTDOWN => {
                connection.guest_ended |= header.flags & NO_SEND != 0;
                connection.client_ended |= header.flags & NO_RECEIVE != 0;
                self.flush(port);
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.reply(port, guest_port, op::CREDIT_UPDATE, 0),
            op::RESET => drop(self.connections.remove(&port)),
            _ => self.remove(port),
        }
    }

    /// Puts a packet into a chain: a reply, or what a client sent. `None`: there is nothing to be told.
    fn send(&mut self, readable: &mut VecDeque<u32>, chain: &mut Chain<'_>) -> Option<u32> {
        if let Some(header) = self.replies.pop_front() {
            return Some(chain.writable.write(&header.bytes()) as u32);
        }
        loop {
            let port = *readable.front()?;
            let room = chain.writable.len().saturating_sub(Header::SIZE);
            let Some(connection) = self.connections.get_mut(&port) else {
                readable.pop_front();
                continue;
            };
            let most = connection.credit().min(PIECE).min(room);
            let mut data = vec![0; most];
            let read = if most == 0 || connection.client_ended || connection.stage != Stage::Open {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                connection.socket.read(&mut data)
            };
            let guest_port = connection.guest_port;
            match read {
                Ok(0) => {
                    connection.client_ended = true;
                    if connection.guest_ended && connection.outgoing.is_empty() {
                        self.remove(port);
                        return self.send(readable, chain);
                    }
                    self.reply(port, guest_port, op::SHUTDOWN, NO_SEND);
                    return self.send(readable, chain);
                }
                Ok(len) => {
                    connection.sent = connection.sent.wrapping_add(len as u32);
                    connection.told = connection.taken;
                    let header = Header { len: len as u32, ..self.header(port, guest_port, op::DATA) };
                    readable.rotate_left(1);
                    let written = chain.writable.write(&header.bytes()) + chain.writable.write(&data[..len]);
                    return Some(written as u32);
                }
                Err(error) => {
                    if !is_passing(&error) {
                        self.remove(port);
                        return self.send(readable, chain);
                    }
                    readable.pop_front();
                }
            }
        }
    }
}

struct Running {
    memory: Memory,
    receive: Queue,
    transmit: Queue,
    listener: Arc<UnixListener>,
    hub: Hub,
}

impl Running {
    fn run(mut self, stop: &Stop) {
        // Clients that may have sent something for which the driver had no room.
        let mut readable = VecDeque::new();
        let mut full = false;
        while let Some(ready) = self.wait(stop, full) {
            if ready.listener
                && let Ok((socket, _)) = self.listener.accept()
            {
                self.hub.add(socket);
            }
            for port in ready.clients {
                if self.hub.connections.get(&port).is_some_and(|it| matches!(it.stage, Stage::Line(_))) {
                    self.hub.read_line(port);
                } else {
                    self.hub.flush(port);
                    readable.push_back(port);
                }
            }
            // What the guest sends is taken only while there is room for what it is to be told of it.
            let hub = &mut self.hub;
            self.transmit.drain(&self.memory, |chain| {
                if hub.replies.len() > MOST * 2 {
                    return Served::Later;
                }
                hub.receive(chain);
                Served::Done(0)
            });
            full = true;
            self.receive.drain(&self.memory, |mut chain| match hub.send(&mut readable, &mut chain) {
                Some(written) => Served::Done(written),
                None => {
                    full = false;
                    Served::Later
                }
            });
            readable.clear();
        }
    }

    /// Waits for anything. With a full receive queue only the driver can change something.
    fn wait(&self, stop: &Stop, full: bool) -> Option<Ready> {
        let mut fds = vec![
            (borrow(&self.receive.kick), PollFlags::IN),
            (borrow(&self.transmit.kick), PollFlags::IN),
            (self.listener.as_fd(), PollFlags::IN),
        ];
        // Of what is not watched for anything poll(2) would tell that its other end went, again and again.
        let mut ports = Vec::new();
        for (port, connection) in &self.hub.connections {
            let wants = if full { connection.wants() - PollFlags::IN } else { connection.wants() };
            if !wants.is_empty() {
                fds.push((connection.socket.as_fd(), wants));
                ports.push(*port);
            }
        }
        let ready = stop.wait_all(&fds)?;
        let clients = ports.into_iter().zip(&ready[3..]).filter(|(_, ready)| **ready);
        Some(Ready { listener: ready[2], clients: clients.map(|(port, _)| port).collect() })
    }
}

/// What has happened.
struct Ready {
    listener: bool,
    clients: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::driver::TestDriver;
    use super::*;

    const GUEST: u64 = 3;

    fn hub() -> Hub {
        Hub { guest: GUEST, connections: BTreeMap::new(), next_port: FIRST_PORT, replies: VecDeque::new() }
    }

    fn packet(op: u16, len: u32) -> Header {
        let (from_port, to_port) = (1024, FIRST_PORT);
        Header { from: GUEST, to: HOST, from_port, to_port, len, kind: STREAM, op, flags: 0, room: 1000, taken: 0 }
    }

    /// The guest sends a packet.
    fn tell(hub: &mut Hub, header: Header, data: &[u8]) {
        let (mut driver, mut queue) = TestDriver::new();
        driver.send(&[&header.bytes(), data], &[]);
        hub.receive(queue.take(&driver.memory).unwrap());
    }

    /// What the guest is sent next, from the clients at these ports.
    fn told(hub: &mut Hub, ports: &[u32]) -> Option<(Header, Vec<u8>)> {
        let (mut driver, mut queue) = TestDriver::new();
        let place = driver.send(&[], &[8192])[0];
        let memory = driver.memory.clone();
        let mut chain = queue.take(&memory).unwrap();
        let written = hub.send(&mut ports.iter().copied().collect(), &mut chain)? as usize;
        let bytes = driver.bytes(place, written);
        let header = Header::parse(bytes[..Header::SIZE].try_into().unwrap());
        assert_eq!(header.len as usize, written - Header::SIZE);
        Some((header, bytes[Header::SIZE..].to_vec()))
    }

    /// A client whose stream to port 1024 of the guest is open.
    fn open() -> (Hub, UnixStream) {
        let (mut hub, (mut client, socket)) = (hub(), UnixStream::pair().unwrap());
        hub.add(socket);
        client.write_all(b"CONNECT 1024\nearly").unwrap();
        hub.read_line(FIRST_PORT);
        let (header, _) = told(&mut hub, &[FIRST_PORT]).unwrap();
        assert_eq!((header.op, header.from_port, header.to_port), (op::REQUEST, FIRST_PORT, 1024));
        assert_eq!(told(&mut hub, &[FIRST_PORT]), None, "nothing is sent before the guest has accepted");
        tell(&mut hub, packet(op::RESPONSE, 0), &[]);
        let mut line = vec![0; 64];
        let len = client.read(&mut line).unwrap();
        assert_eq!(&line[..len], format!("OK {FIRST_PORT}\n").as_bytes());
        (hub, client)
    }

    #[test]
    fn a_stream_carries_data_both_ways_and_ends() {
        let (mut hub, mut client) = open();
        let (header, data) = told(&mut hub, &[FIRST_PORT]).unwrap();
        assert_eq!((header.op, data.as_slice()), (op::DATA, &b"early"[..]));
        tell(&mut hub, packet(op::DATA, 6), b"answer");
        let mut read = [0; 6];
        client.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"answer");
        // No more is sent than the guest has room for, less what it has not taken.
        client.write_all(&[1; 5000]).unwrap();
        assert_eq!(told(&mut hub, &[FIRST_PORT]).unwrap().1.len(), 1000 - 5);
        assert_eq!(told(&mut hub, &[FIRST_PORT]), None);
        tell(&mut hub, Header { taken: 1000, room: 8000, ..packet(op::CREDIT_UPDATE, 0) }, &[]);
        assert_eq!(told(&mut hub, &[FIRST_PORT]).unwrap().1.len(), 5000 - 995);
        // The client ends, then the guest.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (header, _) = told(&mut hub, &[FIRST_PORT]).unwrap();
        assert_eq!((header.op, header.flags, header.taken), (op::SHUTDOWN, NO_SEND, 6));
        tell(&mut hub, Header { flags: NO_SEND | NO_RECEIVE, ..packet(op::SHUTDOWN, 0) }, &[]);
        assert_eq!(told(&mut hub, &[]).unwrap().0.op, op::RESET);
        assert!(hub.connections.is_empty());
        assert_eq!(client.read(&mut read).unwrap(), 0);
    }

    #[test]
    fn a_guest_that_breaks_the_rules_loses_the_connection() {
        let too_much = vec![0; ROOM + 1];
        for (header, data) in [
            (packet(op::DATA, 100), &b"short"[..]),
            (packet(op::DATA, too_much.len() as u32), &too_much),
            (packet(op::REQUEST, 0), &[]),
            (packet(op::RESPONSE, 0), &[]),
            (packet(77, 0), &[]),
        ] {
            let (mut hub, _client) = open();
            tell(&mut hub, header, data);
            assert!(hub.connections.is_empty(), "{header:?}");
            assert_eq!(told(&mut hub, &[]).unwrap().0.op, op::RESET);
        }
        // One that says that it took what it was never sent has no room.
        let (mut hub, _client) = open();
        tell(&mut hub, Header { taken: 1, ..packet(op::CREDIT_UPDATE, 0) }, &[]);
        assert_eq!(told(&mut hub, &[FIRST_PORT]), None);
    }

    #[test]
    fn who_is_not_known_is_refused() {
        let mut hub = hub();
        tell(&mut hub, packet(op::REQUEST, 0), &[]);
        let (header, _) = told(&mut hub, &[]).unwrap();
        assert_eq!((header.op, header.to_port), (op::RESET, 1024));
        // Of others than this guest, and to others than the host, nothing is answered.
        tell(&mut hub, Header { from: 4, ..packet(op::REQUEST, 0) }, &[]);
        tell(&mut hub, Header { to: 5, ..packet(op::REQUEST, 0) }, &[]);
        tell(&mut hub, packet(op::RESET, 0), &[]);
        assert_eq!(told(&mut hub, &[]), None);
    }

    #[test]
    fn a_client_that_asks_for_nothing_sensible_is_let_go_of() {
        for line in ["HELLO 5\n", "CONNECT\n", "CONNECT -1\n", "CONNECT 4294967296\n", &"CONNECT 1".repeat(20)] {
            let (mut hub, (mut client, socket)) = (hub(), UnixStream::pair().unwrap());
            hub.add(socket);
            client.write_all(line.as_bytes()).unwrap();
            hub.read_line(FIRST_PORT);
            assert!(hub.connections.is_empty(), "{line}");
            assert_eq!(told(&mut hub, &[]), None);
        }
    }

    proptest! {
        #[test]
        fn headers_are_read_as_they_are_written(bytes in prop::array::uniform::<_, { Header::SIZE }>(any::<u8>())) {
            prop_assert_eq!(Header::parse(&bytes).bytes(), bytes.to_vec());
        }

        /// Whatever a guest sends, nothing panics and no more is kept than one connection may have.
        #[test]
        fn nonsense_is_taken_calmly(packets in prop::collection::vec((0u16..9, 0u32..70_000, 0usize..70_000), 0..40)) {
            let (mut hub, _client) = open();
            for (op, len, real) in packets {
                tell(&mut hub, packet(op, len), &vec![0; real.max(1)]);
                let kept: usize = hub.connections.values().map(|connection| connection.outgoing.len()).sum();
                prop_assert!(kept <= ROOM);
            }
        }
    }
}
