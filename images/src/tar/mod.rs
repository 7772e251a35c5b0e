//! The tar format: reading archives from strangers and writing our own.
//!
//! The `tar` crate provides the 512-byte header's codec. The stream around it is read here, because three things that
//! matter for images are not to be had from that crate's iterator: extended headers whose values hold newlines (file
//! capabilities and ACLs are binary), a bound on the memory that an extended header may take, and telling an archive
//! that was cut off between two entries from a complete one.

mod pax;
mod reader;
mod sparse;
mod writer;

pub use reader::{TarEntry, TarReader};
pub use sparse::Segment;
pub(crate) use writer::TarWriter;

/// Size of a header and unit of padding, in bytes.
pub(crate) const BLOCK: usize = 512;

/// Whether a block is a header whose checksum is that of its bytes (POSIX pax, "ustar Interchange Format": the sum of
/// all bytes with the checksum field taken as spaces).
pub(crate) fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    let mut header = ::tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    header.cksum().is_ok_and(|stored| stored == sum)
}
