//! New images.

use std::fs::File;
use std::io;

use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};

use super::storage::ImageFile;
use super::{Format, length};

/// Bytes of a cluster of a new image: what QEMU makes too, so that it is what programs and people know. The first write
/// to a cluster copies the rest of it from below, so smaller ones would be better for small writes; but the mappings of
/// all clusters in use are in memory, 8 bytes each: at 64 KiB a disk of 32 GiB needs 4 MiB of the VMM, at 16 KiB 16.
pub const CLUSTER: u64 = 64 << 10;
/// The largest disk in bytes: 64 TiB, of which the table is 1 MiB.
pub const MAX_SIZE: u64 = 64 << 40;

/// What lies below a new image.
#[derive(Debug, Clone, Copy)]
pub struct Backing<'a> {
    /// The name that is written into the header. Duet never follows it; other programs do.
    pub name: &'a str,
    /// Its format.
    pub format: Format,
    /// Bytes of the disk that it is.
    pub size: u64,
}

/// Makes a new, empty image in an empty file that is open for reading and writing, on which all of `backing` is seen, or
/// zeroes. `size` is in bytes and rounded up to whole clusters; the image's size is told. It takes 5 clusters or more,
/// depending on its size. It is not on the disk yet when this returns: see fsync(2).
///
/// # Errors
/// If the file is not empty, the size is less than that of what lies below or more than [`MAX_SIZE`], the name has no or
/// more than 1023 bytes, or as write(2).
pub fn make(file: File, size: u64, backing: Option<Backing<'_>>) -> io::Result<u64> {
    make_with(file, size, backing, CLUSTER)
}

/// The same with clusters of another size.
pub(super) fn make_with(mut file: File, size: u64, backing: Option<Backing<'_>>, cluster: u64) -> io::Result<u64> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    if length(&mut file)? != 0 {
        return Err(wrong("a new image needs an empty file".to_owned()));
    }
    if size == 0 || size > MAX_SIZE {
        return Err(wrong(format!("an image has 1 to {MAX_SIZE} bytes, not {size}")));
    }
    if let Some(below) = backing.filter(|below| below.size > size) {
        return Err(wrong(format!("an image over one of {} bytes cannot have {size}", below.size)));
    }
    if backing.is_some_and(|below| below.name.is_empty() || below.name.len() > 1023) {
        return Err(wrong("the name of a backing file has 1 to 1023 bytes".to_owned()));
    }
    let size = size.next_multiple_of(cluster);
    let image = ImageFile::new(file, 0, i64::MAX as u64, false);
    let mut builder = Qcow2::<ImageFile, FormatAccess<ImageFile>>::create_builder(image).cluster_size(cluster as usize);
    if let Some(below) = backing {
        let format = match below.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        builder = builder.backing(below.name.to_owned(), format.to_owned());
    }
    builder.size(size).create()?;
    Ok(size)
}
