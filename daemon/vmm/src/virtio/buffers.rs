//! Scattered buffers in the guest's memory: one side of a descriptor chain.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::memory::Memory;

/// The most pieces of a chain: as many as one system call takes (`UIO_MAXIOV`), and more than any driver makes.
const MAX_PIECES: usize = 1024;

/// Pieces of guest memory, in order. Taking from it is taking from its beginning.
#[derive(Default, Clone)]
pub struct Buffers<'m> {
    pieces: VecDeque<VolatileSlice<'m>>,
}

impl<'m> Buffers<'m> {
    /// The readable and the writable side of a chain. `None` for a chain that no driver may make: with a piece that is not
    /// memory, a readable one after a writable one (virtio 1.2, 2.7.4.2), too many, or none at all.
    pub fn of(memory: &'m Memory, chain: DescriptorChain<&Memory>) -> Option<(Self, Self)> {
        let (mut readable, mut writable) = (Self::default(), Self::default());
        for (count, descriptor) in chain.enumerate() {
            if count >= MAX_PIECES || (!descriptor.is_write_only() && !writable.pieces.is_empty()) {
                return None;
            }
            let piece = memory.get_slice(descriptor.addr(), descriptor.len() as usize).ok()?;
            let side = if descriptor.is_write_only() { &mut writable } else { &mut readable };
            side.pieces.push_back(piece);
        }
        (!readable.pieces.is_empty() || !writable.pieces.is_empty()).then_some((readable, writable))
    }

    /// Memory that is the process's own and no guest's.
    pub fn own(bytes: &'m mut [u8]) -> Self {
        Self { pieces: [VolatileSlice::from(bytes)].into() }
    }

    /// These pieces of memory: address and length.
    #[cfg(test)]
    pub fn over(memory: &'m Memory, pieces: &[(u64, usize)]) -> Self {
        let piece = |(at, len): &(u64, usize)| memory.get_slice(vm_memory::GuestAddress(*at), *len).unwrap();
        Self { pieces: pieces.iter().map(piece).collect() }
    }

    /// Where the pieces lie in this process, and how long they are.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, usize)> {
        self.pieces.iter().map(|piece| (piece.ptr_guard_mut().as_ptr() as u64, piece.len()))
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.iter().map(VolatileSlice::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Splits off the first so many bytes, or fewer if there are fewer.
    #[must_use]
    pub fn take(&mut self, count: usize) -> Self {
        let (mut taken, mut left) = (Self::default(), count);
        while left > 0
            && let Some(piece) = self.pieces.pop_front()
        {
            let here = piece.len().min(left);
            // Both are within the piece.
            let (Ok(first), Ok(rest)) = (piece.subslice(0, here), piece.offset(here)) else { break };
            taken.pieces.push_back(first);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
            left -= here;
        }
        taken
    }

    /// Splits off the last so many bytes, or none if there are fewer.
    #[must_use]
    pub fn take_end(&mut self, count: usize) -> Option<Self> {
        let first = self.take(self.len().checked_sub(count)?);
        Some(std::mem::replace(self, first))
    }

    /// Takes as much as fills `bytes`, and says how much that was.
    pub fn read(&mut self, bytes: &mut [u8]) -> usize {
        let taken = self.take(bytes.len());
        taken.pieces.iter().fold(0, |at, piece| at + piece.copy_to(&mut bytes[at..]))
    }

    /// Takes room for `bytes` and puts them there, and says how many had room.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let taken = self.take(bytes.len());
        taken.pieces.iter().fold(0, |at, piece| {
            piece.copy_from(&bytes[at..]);
            at + piece.len().min(bytes.len() - at)
        })
    }

    /// Takes an array of bytes, if there are as many.
    #[must_use]
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.read(&mut bytes) == N).then_some(bytes)
    }

    fn vectors(&self) -> Vec<libc::iovec> {
        let vector = |piece: &VolatileSlice<'m>| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        };
        self.pieces.iter().map(vector).collect()
    }

    /// Fills them from a file at an offset.
    ///
    /// # Errors
    /// As preadv(2); a file that ends before is `UnexpectedEof`.
    pub fn fill_at(self, file: impl AsFd, offset: u64) -> io::Result<()> {
        // SAFETY: the vectors are guest memory, mapped while `self` lives, and of which nobody holds a reference.
        self.move_at(offset, |vectors, at| unsafe {
            libc::preadv64(file.as_fd().as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at)
        })
    }

    /// Fills them from a file at an offset, and with zeroes what lies beyond its end.
    ///
    /// # Errors
    /// As preadv(2).
    pub fn fill_at_or_zero(&mut self, file: impl AsFd, offset: u64) -> io::Result<()> {
        // SAFETY: as in `fill_at`.
        let result = self.advance(offset, |vectors, at| unsafe {
            libc::preadv64(file.as_fd().as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at)
        });
        match result {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.clear();
                Ok(())
            }
            result => result,
        }
    }

    /// Fills them with zeroes.
    pub fn clear(&mut self) {
        while self.write(&[0; 4096]) > 0 {}
    }

    /// Writes them to a file at an offset.
    ///
    /// # Errors
    /// As pwritev(2).
    pub fn store_at(self, file: impl AsFd, offset: u64) -> io::Result<()> {
        // SAFETY: as in `fill_at`; the kernel only reads.
        self.move_at(offset, |vectors, at| unsafe {
            libc::pwritev64(file.as_fd().as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at)
        })
    }

    fn move_at(mut self, offset: u64, call: impl Fn(&[libc::iovec], i64) -> isize) -> io::Result<()> {
        self.advance(offset, call)
    }

    /// Takes what a call has moved until all is, or the file ends.
    fn advance(&mut self, mut offset: u64, call: impl Fn(&[libc::iovec], i64) -> isize) -> io::Result<()> {
        while !self.is_empty() {
            let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            let moved = match usize::try_from(call(&self.vectors(), at)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            drop(self.take(moved));
            offset += moved as u64;
        }
        Ok(())
    }

    /// Writes them to a descriptor, once: as much as it takes, or as a packet. Gives how much that was.
    ///
    /// # Errors
    /// As writev(2).
    pub fn send(&self, file: impl AsFd) -> io::Result<usize> {
        let vectors = self.vectors();
        // SAFETY: as in `store_at`.
        let written = unsafe { libc::writev(file.as_fd().as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}
