//! From a stranger's archive of a root file system to a part of an image.
//!
//! Each entry is read and written anew, so that the result is well formed, has nothing but the root file system in it, and
//! nothing that unpacking would refuse for its name or size.

use std::io::{BufRead, Write};

use super::tree::PackedTree;
use crate::entry::{CleanPath, EntryKind, show};
use crate::limits::Limits;
use crate::observe::{Observer, Phase};
use crate::tar::{Segment, TarEntry, TarReader, TarWriter};
use crate::tree::is_kept;
use crate::{ImageError, Result};

/// Adds what an archive holds, to its end mark. All its names are below `rootfs`.
pub(super) fn add_archive<R: BufRead, W: Write>(
    rootfs: R,
    tar: &mut TarWriter<W>,
    observer: &mut Observer<'_>,
) -> Result<PackedTree> {
    let limits = Limits::default();
    let mut reader = TarReader::new(rootfs, &limits);
    let (mut content, mut entries) = (0_u64, 0);
    while let Some(entry) = reader.next_entry()? {
        observer.check()?;
        entries += 1;
        if entries > limits.max_entries {
            return Err(ImageError::Limit { what: "the number of its entries".into(), limit: limits.max_entries });
        }
        content = content.saturating_add(entry.data_size());
        if content > limits.max_bytes {
            return Err(ImageError::Limit { what: "the size of its files".into(), limit: limits.max_bytes });
        }
        copy(entry, &limits, &mut reader, tar, observer)?;
        observer.report(Phase::Packing, content, None, "");
    }
    reader.finish()?;
    Ok(PackedTree { content, entries })
}

fn copy<R: BufRead, W: Write>(
    mut entry: TarEntry,
    limits: &Limits,
    reader: &mut TarReader<R>,
    tar: &mut TarWriter<W>,
    observer: &Observer<'_>,
) -> Result<()> {
    let mut name = below_rootfs(&entry.name, limits)?;
    let (file, directory) = (entry.kind == EntryKind::File, entry.kind == EntryKind::Directory);
    let link = matches!(entry.kind, EntryKind::Symlink(_));
    entry.attributes.xattrs.retain(|(key, _)| is_kept(key, file, directory, link));
    match &mut entry.kind {
        EntryKind::File => {}
        EntryKind::Socket => return Ok(()),
        EntryKind::Directory => name.push(b'/'),
        EntryKind::HardLink(target) => *target = below_rootfs(target, limits)?,
        EntryKind::Symlink(_) | EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {}
    }
    if !file {
        return tar.entry(&name, &entry.kind, &entry.attributes).map_err(ImageError::Write);
    }
    let whole = entry.size == 0 || entry.segments == [Segment { offset: 0, length: entry.size }];
    if !whole && entry.segments.last().is_none_or(|last| last.offset.saturating_add(last.length) < entry.size) {
        // By this the size is known.
        entry.segments.push(Segment { offset: entry.size, length: 0 });
    }
    let map = (!whole).then_some(entry.segments.as_slice());
    tar.file(&name, &entry.attributes, entry.size, map).map_err(ImageError::Write)?;
    loop {
        observer.check()?;
        let piece = reader.data()?;
        if piece.is_empty() {
            return Ok(());
        }
        tar.data(piece).map_err(ImageError::Write)?;
        let length = piece.len();
        reader.consume(length);
    }
}

/// A clean name, which must be below the root file system, or that itself.
fn below_rootfs(name: &[u8], limits: &Limits) -> Result<Vec<u8>> {
    let clean = CleanPath::parse(name, limits)?;
    if clean.split_first().0 != b"rootfs" {
        return Err(ImageError::refused(show(name), "it is not below rootfs"));
    }
    Ok(clean.as_bytes().to_vec())
}
