//! The serial port: a 16550A whose output goes to a descriptor and whose input comes from one.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The serial port's interrupt.
#[derive(Debug)]
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the output goes. What the other side does not take at once is lost, or else it could hold a CPU up.
#[derive(Debug)]
pub struct Output(Option<File>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &self.0 {
            let fd = file.as_fd();
            let mut wanted = [PollFd::new(&fd, PollFlags::OUT)];
            if poll(&mut wanted, Some(&Timespec::default())).unwrap_or(0) > 0 {
                // An error, as of a reader that went, loses it too.
                let _ = (&*file).write(bytes);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells when the guest has read all of its input.
#[derive(Debug)]
pub struct Drained(pub EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // A full counter is as readable as any.
        let _ = self.0.write(1);
    }
}

/// The serial port.
pub type Port = Serial<Line, Drained, Output>;

/// A serial port that writes to `output`, or nowhere.
///
/// # Errors
/// If the process has no descriptors left.
pub fn new(output: Option<File>) -> io::Result<Port> {
    let (line, drained) = (Line(EventFd::new(EFD_NONBLOCK)?), Drained(EventFd::new(EFD_NONBLOCK)?));
    Ok(Serial::with_events(line, drained, Output(output)))
}

/// Gives the guest as much of `input` as fits, and says how much that was. The rest is for later.
pub fn receive(port: &mut Port, input: &[u8]) -> usize {
    let room = port.fifo_capacity().min(input.len());
    port.enqueue_raw_bytes(&input[..room]).unwrap_or(0)
}
