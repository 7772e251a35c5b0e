//! The console device (virtio 1.2, 5.3), with one port.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::PollFlags;

use super::queue::{Queue, Served};
use super::{Device, Driver, Stop, Thread, Worker};
use crate::events::{borrow, is_passing};
use crate::memory::Memory;

/// What is taken from the input at a time in bytes.
const CHUNK: usize = 4096;
/// What a chain may hold in bytes; drivers write a page at a time. The rest is lost.
const MOST: usize = 1 << 20;

/// The device.
#[derive(Debug)]
pub struct Console {
    input: Option<Arc<File>>,
    output: Arc<File>,
}

impl Console {
    /// A console with these two directions.
    #[must_use]
    pub fn new(input: Option<File>, output: File) -> Self {
        Self { input: input.map(Arc::new), output: Arc::new(output) }
    }
}

impl Device for Console {
    fn kind(&self) -> u16 {
        3
    }

    fn queues(&self) -> &[u16] {
        &[64, 64]
    }

    /// Columns, rows, ports and the emergency register, none of which is offered.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>> {
        let (input, output) = (self.input.clone(), Arc::clone(&self.output));
        Thread::spawn("console", move |stop| {
            let Driver { memory, queues, .. } = driver;
            if let Ok([receive, transmit]) = <[Queue; 2]>::try_from(queues) {
                Running { memory, receive, transmit, input, output, incoming: Vec::new(), outgoing: Vec::new() }
                    .run(&stop);
            }
        })
    }
}

struct Running {
    memory: Memory,
    receive: Queue,
    transmit: Queue,
    input: Option<Arc<File>>,
    output: Arc<File>,
    /// Input for which the driver has no room yet.
    incoming: Vec<u8>,
    /// Output that is not written yet: at most one chain's.
    outgoing: Vec<u8>,
}

impl Running {
    fn run(mut self, stop: &Stop) {
        loop {
            let nothing = (borrow(&self.receive.kick), PollFlags::empty());
            let input = self.input.clone().filter(|_| self.incoming.is_empty());
            let output = Arc::clone(&self.output);
            let sending = !self.outgoing.is_empty();
            let fds = [
                (borrow(&self.receive.kick), PollFlags::IN),
                if sending { nothing } else { (borrow(&self.transmit.kick), PollFlags::IN) },
                input.as_ref().map_or(nothing, |file| (file.as_fd(), PollFlags::IN)),
                if sending { (output.as_fd(), PollFlags::OUT) } else { nothing },
            ];
            let Some([_, _, readable, writable]) = stop.wait(fds) else { return };
            if readable && let Some(file) = input {
                self.read(&file);
            }
            if writable && sending {
                self.write();
            }
            self.deliver();
            self.fetch();
        }
    }

    fn read(&mut self, mut file: &File) {
        let mut chunk = [0; CHUNK];
        match file.read(&mut chunk) {
            Ok(0) => self.input = None,
            Ok(len) => self.incoming.extend_from_slice(&chunk[..len]),
            Err(error) if is_passing(&error) => {}
            Err(_) => self.input = None,
        }
    }

    /// Writes as much as a pipe that can be written to takes at least (`PIPE_BUF`, pipe(7)).
    fn write(&mut self) {
        let piece = self.outgoing.len().min(CHUNK);
        match (&*self.output).write(&self.outgoing[..piece]) {
            Ok(written) if written > 0 => drop(self.outgoing.drain(..written)),
            Err(error) if is_passing(&error) => {}
            // Nobody reads any more: it is lost.
            _ => self.outgoing.clear(),
        }
    }

    /// Gives the driver what has come in, as far as it has room.
    fn deliver(&mut self) {
        let incoming = &mut self.incoming;
        self.receive.drain(&self.memory, |mut chain| {
            if incoming.is_empty() {
                return Served::Later;
            }
            let written = chain.writable.write(incoming);
            incoming.drain(..written);
            Served::Done(written as u32)
        });
    }

    /// Takes the driver's next output, if the last is written.
    fn fetch(&mut self) {
        let outgoing = &mut self.outgoing;
        self.transmit.drain(&self.memory, |mut chain| {
            if !outgoing.is_empty() {
                return Served::Later;
            }
            outgoing.resize(chain.readable.len().min(MOST), 0);
            chain.readable.read(outgoing);
            Served::Done(0)
        });
    }
}
