//! Many layers as one.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::chain::{Chain, Clear, Found};
use super::make::{Backing, make};
use super::{Format, ImageError, Layer, length};
use crate::virtio::buffers::Buffers;

/// Bytes that are moved at a time.
const PIECE: u64 = 1 << 20;

/// Writes into `target`, an empty file that is open for reading and writing, an image over the lowest of these layers (top
/// first), with which that is the same disk as it is with all of them. Nobody writes to them meanwhile. `name` is that of
/// the lowest one for the header. It is not on the disk yet when this returns: see fsync(2).
///
/// # Errors
/// If the layers are no disk or cannot be read, or as write(2).
pub fn join(layers: Vec<Layer>, target: File, name: &str) -> io::Result<()> {
    let failed = |error: ImageError| io::Error::other(error);
    let lowest = layers.last().ok_or_else(|| failed(ImageError::Layers(0)))?;
    let (mut base, format) = (lowest.file.try_clone()?, lowest.format);
    if format != Format::Raw {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the lowest layer of the disk is not raw"));
    }
    let (status, bytes) = (base.metadata()?, length(&mut base)?);
    let below = Found::Data { dev: status.dev(), ino: status.ino() };
    let old = Chain::open(layers, true).map_err(failed)?;
    make(target.try_clone()?, old.size(), Some(Backing { name, format, size: bytes }))?;
    let layer = |file, format| Layer { file, format };
    let new = Chain::open(vec![layer(target, Format::Qcow2), layer(base, format)], false).map_err(failed)?;
    let mut piece = vec![0; PIECE as usize];
    let mut offset = 0;
    while offset < old.size() {
        let (found, len) = old.look(offset, PIECE.min(old.size() - offset))?;
        match found {
            found if found == below => {}
            // Beyond the end of what lies below there is nothing else than zeroes.
            Found::Zero if offset >= bytes => {}
            Found::Zero => new.clear(offset, len, Clear::Unmap)?,
            Found::Data { .. } | Found::Packed => {
                let piece = &mut piece[..len as usize];
                old.read(Buffers::own(piece), offset)?;
                new.write(Buffers::own(piece), offset)?;
            }
        }
        offset += len;
    }
    new.settle()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::image::Image;

    const SIZE: usize = 1 << 20;

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn layers_joined_are_the_same_disk(
            writes in prop::collection::vec((0usize..4, 0usize..SIZE, 1usize..100_000, 0u8..4), 1..20),
            layers in 1usize..5,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = |number: usize| dir.path().join(number.to_string());
            let mut plain: Vec<u8> = (0..SIZE / 2).map(|at| (at / 512 % 251) as u8 + 1).collect();
            std::fs::write(path(0), &plain).unwrap();
            plain.resize(SIZE, 0);
            let opened = |top: usize| {
                let format = |number| if number == 0 { Format::Raw } else { Format::Qcow2 };
                (0..=top).rev().map(|number| Layer { file: open(&path(number)), format: format(number) }).collect()
            };
            for top in 1..=layers {
                let format = if top == 1 { Format::Raw } else { Format::Qcow2 };
                let size = if top == 1 { SIZE / 2 } else { SIZE } as u64;
                make(open(&path(top)), SIZE as u64, Some(Backing { name: "below", format, size })).unwrap();
                let image = Chain::open(opened(top), false).unwrap();
                for (_, from, len, byte) in writes.iter().filter(|(of, ..)| of % layers == top - 1) {
                    let range = *from..(from + len).min(SIZE);
                    plain[range.clone()].fill(*byte);
                    if *byte == 0 {
                        image.clear(range.start as u64, range.len() as u64, Clear::Unmap).unwrap();
                    } else {
                        image.write(Buffers::own(&mut plain[range.clone()].to_vec()), range.start as u64).unwrap();
                    }
                }
                image.settle().unwrap();
            }
            join(opened(layers), open(&path(9)), "0").unwrap();
            let joined = vec![
                Layer { file: open(&path(9)), format: Format::Qcow2 },
                Layer { file: open(&path(0)), format: Format::Raw },
            ];
            let (joined, size) = Image::open(joined, true).unwrap();
            let mut read = vec![1; size as usize];
            joined.read_own(&mut read, 0).unwrap();
            prop_assert!(read == plain);
            // What nobody wrote is not copied.
            if writes.len() == 1 {
                prop_assert!(std::fs::metadata(path(9)).unwrap().len() < 700_000);
            }
        }
    }
}
