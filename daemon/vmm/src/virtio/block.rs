//! The block device (virtio 1.2, 5.2): an [`Image`] of the host's as a disk. Each queue has a thread that does one request
//! after the other; a guest with several CPUs has several queues.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFlags;
use virtio_queue::QueueT;

use super::buffers::Buffers;
use super::queue::{Chain, Served};
use super::{Device, Driver, Thread, Worker};
use crate::events::borrow;
use crate::image::{Image, ImageError, Layer};
use crate::limit::{Direction, Limiter};
use crate::spec::DiskLimits;

/// The unit of all of a driver's numbers in bytes.
const SECTOR: u64 = 512;
/// The most bytes of one request.
const MOST: usize = 32 << 20;
/// The most pieces of data in a request: a chain has one more before and after.
const SEGMENTS: u32 = 254;
/// Sectors of a discard or of writing zeroes, and ranges of one request.
const MOST_SECTORS: u32 = 1 << 22;
const MOST_RANGES: u32 = 16;
/// How long queues are.
const QUEUE_SIZE: u16 = 256;
/// The most queues of a disk.
pub const MOST_QUEUES: usize = 4;
/// Bytes of the name that a driver can ask for.
const NAME: usize = 20;

/// Features (virtio 1.2, 5.2.3).
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const MULTI_QUEUE: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// Requests.
mod request {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const NAME: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done = 0,
    Failed = 1,
    Unsupported = 2,
}

impl From<io::Result<()>> for Outcome {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Self::Unsupported,
            Err(_) => Self::Failed,
        }
    }
}

/// A disk.
#[derive(Debug)]
struct Disk {
    image: Image,
    sectors: u64,
    read_only: bool,
    name: [u8; NAME],
    limiter: Arc<Limiter>,
}

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    queues: Vec<u16>,
}

impl Block {
    /// A disk of these layers, top first. What is not a whole sector at its end is not seen. `name` is what Linux has in
    /// /dev/disk/by-id after "virtio-", of which 20 bytes are told. There is a queue for each of so many CPUs, but no more
    /// than [`MOST_QUEUES`].
    ///
    /// # Errors
    /// If the layers are no disk.
    pub fn new(
        layers: Vec<Layer>,
        read_only: bool,
        name: &str,
        limits: DiskLimits,
        cpus: u8,
    ) -> Result<Self, ImageError> {
        let (image, size) = Image::open(layers, read_only)?;
        let sectors = size / SECTOR;
        let mut told = [0; NAME];
        told.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        let queues = vec![QUEUE_SIZE; usize::from(cpus).clamp(1, MOST_QUEUES)];
        let limiter = Limiter::new(limits.read, limits.write, queues.len())
            .map_err(|source| ImageError::Host { layer: 0, source })?;
        let disk = Disk { image, sectors, read_only, name: told, limiter: Arc::new(limiter) };
        Ok(Self { disk: Arc::new(disk), queues })
    }
}

impl Device for Block {
    fn kind(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        let changes = if self.disk.read_only { READ_ONLY } else { DISCARD | WRITE_ZEROES };
        SEG_MAX | FLUSH | MULTI_QUEUE | changes
    }

    fn queues(&self) -> &[u16] {
        &self.queues
    }

    /// `struct virtio_blk_config` (virtio 1.2, 5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &self.disk.sectors.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(34, &(self.queues.len() as u16).to_le_bytes());
        put(36, &MOST_SECTORS.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &MOST_SECTORS.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn limiter(&self) -> Option<Arc<Limiter>> {
        Some(Arc::clone(&self.disk.limiter))
    }

    fn start(&mut self, driver: Driver) -> io::Result<Box<dyn Worker>> {
        let mut threads = Vec::new();
        for (index, mut queue) in driver.queues.into_iter().enumerate().filter(|(_, queue)| queue.ring().ready()) {
            let (disk, memory) = (Arc::clone(&self.disk), driver.memory.clone());
            threads.push(Thread::spawn("disk", move |stop| {
                let mut wait = None;
                loop {
                    // Whoever waits for a limit looks at nothing but its change: new requests would have to wait too.
                    let event = wait.and(disk.limiter.wake(index)).unwrap_or(&queue.kick);
                    if stop.wait_for([(borrow(event), PollFlags::IN)], wait).is_none() {
                        break;
                    }
                    if wait.take().is_some() {
                        let _ = event.read();
                    }
                    queue.drain(&memory, |chain| disk.serve(chain, &mut wait));
                }
                // The process may end next. Whoever relies on what was written has flushed it.
                let _ = disk.image.settle();
            })?);
        }
        Ok(Box::new(threads))
    }
}

impl Disk {
    /// Serves a request: a header, data, and one byte for what became of it. One that a limit holds up waits for `wait`.
    fn serve(&self, chain: Chain<'_>, wait: &mut Option<Duration>) -> Served {
        let Chain { mut readable, mut writable, .. } = chain;
        let Some(mut status) = writable.take_end(1) else { return Served::Done(0) };
        let room = writable.len();
        let outcome = match readable.array::<16>() {
            Some(header) if let Err(time) = self.take(&header, readable.len(), room) => {
                *wait = Some(time);
                return Served::Later;
            }
            Some(header) => self.run(header, readable, writable),
            None => Outcome::Failed,
        };
        status.write(&[outcome as u8]);
        // All is said to be written or nothing: what a failed request wrote means nothing.
        let written = if outcome == Outcome::Done { room } else { 0 };
        Served::Done(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    /// Has the limits count a request. A flush is never held up: it moves nothing that was not counted.
    fn take(&self, header: &[u8; 16], readable: usize, writable: usize) -> Result<(), Duration> {
        // More than this fails.
        let bytes = |count: usize| count.min(MOST) as u64;
        let [a, b, c, d, ..] = *header;
        match u32::from_le_bytes([a, b, c, d]) {
            request::READ => self.limiter.take(Direction::In, bytes(writable)),
            request::WRITE => self.limiter.take(Direction::Out, bytes(readable)),
            request::DISCARD | request::WRITE_ZEROES => self.limiter.take(Direction::Out, 0),
            _ => Ok(()),
        }
    }

    /// `readable` is what is to be written to the disk, `writable` where what is read goes.
    fn run(&self, header: [u8; 16], readable: Buffers<'_>, mut writable: Buffers<'_>) -> Outcome {
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
        match kind {
            request::READ => match self.place(sector, writable.len()) {
                Some(offset) => self.image.read(writable, offset).into(),
                None => Outcome::Failed,
            },
            request::WRITE if !self.read_only => match self.place(sector, readable.len()) {
                Some(offset) => self.image.write(readable, offset).into(),
                None => Outcome::Failed,
            },
            request::FLUSH => self.image.flush().into(),
            request::NAME => {
                writable.write(&self.name);
                Outcome::Done
            }
            request::DISCARD | request::WRITE_ZEROES if !self.read_only => self.clear(kind, readable),
            request::WRITE | request::DISCARD | request::WRITE_ZEROES => Outcome::Failed,
            _ => Outcome::Unsupported,
        }
    }

    /// Where so many bytes from a sector on begin, if they are whole sectors of this disk.
    fn place(&self, sector: u64, len: usize) -> Option<u64> {
        let count = len as u64 / SECTOR;
        let inside = sector.checked_add(count).is_some_and(|end| end <= self.sectors);
        (inside && len <= MOST && (len as u64).is_multiple_of(SECTOR)).then(|| sector * SECTOR)
    }

    /// Discards ranges, or fills them with zeroes.
    fn clear(&self, kind: u32, mut ranges: Buffers<'_>) -> Outcome {
        if ranges.len() > MOST_RANGES as usize * 16 || !ranges.len().is_multiple_of(16) {
            return Outcome::Failed;
        }
        while let Some(range) = ranges.array::<16>() {
            let [sector @ .., a, b, c, d, e, f, g, h] = range;
            let (sector, count) = (u64::from_le_bytes(sector), u32::from_le_bytes([a, b, c, d]));
            let unmap = u32::from_le_bytes([e, f, g, h]);
            let inside = sector.checked_add(count.into()).is_some_and(|end| end <= self.sectors);
            // The flag "unmap" is there for writing zeroes alone (virtio 1.2, 5.2.6.2).
            if unmap > u32::from(kind == request::WRITE_ZEROES) {
                return Outcome::Unsupported;
            }
            if !inside || count > MOST_SECTORS {
                return Outcome::Failed;
            }
            let (offset, len) = (sector * SECTOR, u64::from(count) * SECTOR);
            let result = match kind {
                request::DISCARD => self.image.discard(offset, len),
                _ => self.image.write_zeroes(offset, len, unmap == 1),
            };
            match result.into() {
                Outcome::Done => {}
                // To discard is advice.
                Outcome::Unsupported if kind == request::DISCARD => {}
                outcome => return outcome,
            }
        }
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::super::driver::TestDriver;
    use super::*;
    use crate::image::Format;

    fn file(block: &Block) -> &std::fs::File {
        match &block.disk.image {
            Image::Raw(file) => file,
            Image::Chain(_) => panic!("a raw layer alone is no chain"),
        }
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    fn disk(read_only: bool) -> Block {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096 + 100]).unwrap();
        let layer = Layer { file, format: Format::Raw };
        Block::new(vec![layer], read_only, "a name of more than twenty bytes", DiskLimits::default(), 1).unwrap()
    }

    /// What a request came to, and what was written to its room.
    fn ask(block: &Block, readable: &[&[u8]], room: usize) -> (u8, Vec<u8>) {
        let (mut driver, mut queue) = TestDriver::new();
        let places = driver.send(readable, &[room, 1]);
        let memory = driver.memory.clone();
        queue.drain(&memory, |chain| block.disk.serve(chain, &mut None));
        let written = driver.given().unwrap().1 as usize;
        let outcome = driver.bytes(places[1], 1)[0];
        assert_eq!(written, if outcome == 0 { room + 1 } else { 1 });
        (outcome, driver.bytes(places[0], room))
    }

    #[test]
    fn a_disk_is_read_and_written_within_its_bounds() {
        let block = disk(false);
        assert_eq!(ask(&block, &[&header(request::READ, 0)], 512), (0, vec![7; 512]));
        assert_eq!(ask(&block, &[&header(request::WRITE, 7), &[1; 512]], 0).0, 0);
        assert_eq!(ask(&block, &[&header(request::READ, 6)], 1024).1, [vec![7; 512], vec![1; 512]].concat());
        for (kind, sector, room, data) in [
            (request::READ, 8, 512, 0),
            (request::READ, 7, 1024, 0),
            (request::READ, 0, 100, 0),
            (request::READ, u64::MAX, 512, 0),
            (request::READ, u64::MAX / 512 + 1, 512, 0),
            (request::WRITE, 8, 0, 512),
            (request::WRITE, 0, 0, 511),
        ] {
            assert_eq!(ask(&block, &[&header(kind, sector), &vec![1; data.max(1)]], room).0, 1, "{kind} {sector}");
        }
        assert_eq!(file(&block).metadata().unwrap().len(), 4096 + 100);
        assert_eq!(ask(&block, &[&header(request::FLUSH, 0)], 0).0, 0);
        assert_eq!(ask(&block, &[&header(request::NAME, 0)], 20).1, b"a name of more than ");
        assert_eq!(ask(&block, &[&header(99, 0)], 0).0, 2);
        assert_eq!(ask(&block, &[b"short"], 512).0, 1);
    }

    #[test]
    fn ranges_are_cleared_within_the_bounds() {
        let block = disk(false);
        let range = |sector: u64, count: u32, flags: u32| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        let clear = |kind, range: &[u8]| ask(&block, &[&header(kind, 0), range], 0).0;
        assert_eq!(clear(request::WRITE_ZEROES, &range(2, 2, 1)), 0);
        let mut bytes = [9; 4096];
        file(&block).read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[1023], &bytes[1024..2048], bytes[2048]), (7, &[0; 1024][..], 7));
        assert_eq!(clear(request::DISCARD, &range(0, 1, 0)), 0);
        assert_eq!(clear(request::DISCARD, &range(0, 1, 1)), 2);
        assert_eq!(clear(request::DISCARD, &range(8, 1, 0)), 1);
        assert_eq!(clear(request::DISCARD, &range(u64::MAX, 2, 0)), 1);
        assert_eq!(clear(request::DISCARD, &range(0, 1, 0)[..15]), 1);
    }

    #[test]
    fn a_read_only_disk_stays_as_it_is() {
        let block = disk(true);
        for kind in [request::WRITE, request::DISCARD, request::WRITE_ZEROES] {
            assert_eq!(ask(&block, &[&header(kind, 0), &[0; 512]], 0).0, 1);
        }
        assert_eq!(ask(&block, &[&header(request::READ, 0)], 4096), (0, vec![7; 4096]));
    }
}
