//! The entropy device (virtio 1.2, 5.4): random bytes of the host's.

use std::io;

use rustix::event::PollFlags;
use rustix::rand::{GetRandomFlags, getrandom};

use super::queue::{Chain, Served};
use super::{Device, Driver, Thread, Worker};
use crate::events::borrow;

/// What a request gets at most in bytes. A driver takes less as well.
const MOST: usize = 4096;

/// The device.
#[derive(Debug, Clone, Copy)]
pub struct Rng;

impl Device for Rng {
    fn kind(&self) -> u16 {
        4
    }

    fn queues(&self) -> &[u16] {
        &[64]
    }

    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>> {
        let Driver { memory, mut queues, .. } = driver;
        Thread::spawn("rng", move |stop| {
            while stop.wait([(borrow(&queues[0].kick), PollFlags::IN)]).is_some() {
                queues[0].drain(&memory, serve);
            }
        })
    }
}

fn serve(mut chain: Chain<'_>) -> Served {
    let mut bytes = [0; MOST];
    let wanted = chain.writable.len().min(MOST);
    let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
    Served::Done(chain.writable.write(&bytes[..got]) as u32)
}
