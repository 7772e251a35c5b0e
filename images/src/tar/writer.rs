//! Writing a tar archive: POSIX pax, with an extended header only where an entry needs one.

use std::io::{self, Write};

use super::sparse::Segment;
use super::{BLOCK, pax};
use crate::entry::{Attributes, EntryKind};

/// An archive being written.
#[derive(Debug)]
pub(crate) struct TarWriter<W> {
    out: W,
    /// Bytes of data still to come for the current file.
    expected: u64,
    padding: usize,
}

/// Largest number that an octal field of `digits` digits holds.
const fn octal_max(digits: u32) -> u64 {
    (1 << (3 * digits)) - 1
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> TarWriter<W> {
        TarWriter { out, expected: 0, padding: 0 }
    }

    /// Writes the header of a regular file; [`TarWriter::data`] then takes exactly the bytes of its segments (or, with
    /// no map given, `size` bytes).
    pub(crate) fn file(
        &mut self,
        name: &[u8],
        attributes: &Attributes,
        size: u64,
        map: Option<&[Segment]>,
    ) -> io::Result<()> {
        let Some(map) = map else {
            self.header(name, b'0', &[], attributes, size, None, Vec::new())?;
            self.expect(size);
            return Ok(());
        };
        // The 1.0 form: the map stands before the data, so that a reader that knows nothing of it still gets a file.
        let mut text = format!("{}\n", map.len());
        for segment in map {
            text.push_str(&format!("{}\n{}\n", segment.offset, segment.length));
        }
        let mut text = text.into_bytes();
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let data: u64 = map.iter().map(|s| s.length).sum();
        let mut records = Vec::new();
        pax::append(&mut records, b"GNU.sparse.major", b"1");
        pax::append(&mut records, b"GNU.sparse.minor", b"0");
        pax::append(&mut records, b"GNU.sparse.name", name);
        pax::append(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
        self.header(&sparse_stand_in(name), b'0', &[], attributes, text.len() as u64 + data, None, records)?;
        self.expect(text.len() as u64 + data);
        self.data(&text)
    }

    /// Writes an entry that has no data.
    pub(crate) fn entry(&mut self, name: &[u8], kind: &EntryKind, attributes: &Attributes) -> io::Result<()> {
        let (flag, link, device): (u8, &[u8], _) = match kind {
            EntryKind::HardLink(target) => (b'1', target, None),
            EntryKind::Symlink(target) => (b'2', target, None),
            EntryKind::CharDevice { major, minor } => (b'3', b"", Some((*major, *minor))),
            EntryKind::BlockDevice { major, minor } => (b'4', b"", Some((*major, *minor))),
            EntryKind::Directory => (b'5', b"", None),
            EntryKind::Fifo => (b'6', b"", None),
            EntryKind::File | EntryKind::Socket => {
                return Err(io::Error::other("this kind of entry cannot be written so"));
            }
        };
        self.header(name, flag, link, attributes, 0, device, Vec::new())
    }

    /// Writes a piece of the current file's data.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.expected = self
            .expected
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("a file grew while it was read"))?;
        self.out.write_all(bytes)?;
        if self.expected == 0 {
            self.out.write_all(&[0; BLOCK][..self.padding])?;
            self.padding = 0;
        }
        Ok(())
    }

    /// Writes the end mark and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.settled()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn expect(&mut self, size: u64) {
        self.expected = size;
        self.padding = (size.next_multiple_of(BLOCK as u64) - size) as usize; // less than a block
    }

    fn settled(&self) -> io::Result<()> {
        if self.expected > 0 { Err(io::Error::other("a file shrank while it was read")) } else { Ok(()) }
    }

    #[allow(clippy::too_many_arguments)] // one call per field of the format
    fn header(
        &mut self,
        name: &[u8],
        flag: u8,
        link: &[u8],
        attributes: &Attributes,
        size: u64,
        device: Option<(u32, u32)>,
        mut records: Vec<u8>,
    ) -> io::Result<()> {
        self.settled()?;
        let mut header = ::tar::Header::new_ustar();
        let bytes = header.as_mut_bytes();
        put(&mut bytes[..100], name, || pax::append(&mut records, b"path", name));
        put(&mut bytes[157..257], link, || pax::append(&mut records, b"linkpath", link));
        bytes[156] = flag;
        header.set_mode(attributes.mode & 0o7777);
        for (key, id) in [("uid", attributes.uid), ("gid", attributes.gid)] {
            let fits = u64::from(id) <= octal_max(7);
            if !fits {
                pax::append(&mut records, key.as_bytes(), id.to_string().as_bytes());
            }
            let stored = if fits { id.into() } else { 0 };
            if key == "uid" { header.set_uid(stored) } else { header.set_gid(stored) }
        }
        let seconds = u64::try_from(attributes.mtime.seconds).ok().filter(|s| *s <= octal_max(11));
        if seconds.is_none() || attributes.mtime.nanoseconds != 0 {
            pax::append(&mut records, b"mtime", pax::time_text(attributes.mtime).as_bytes());
        }
        header.set_mtime(seconds.unwrap_or(0));
        if size > octal_max(11) {
            pax::append(&mut records, b"size", size.to_string().as_bytes());
        }
        header.set_size(size.min(octal_max(11)));
        let (major, minor) = device.unwrap_or_default();
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        for (key, value) in &attributes.xattrs {
            pax::append(&mut records, &[b"SCHILY.xattr.", key.as_slice()].concat(), value);
        }
        header.set_cksum();
        if !records.is_empty() {
            self.extended(&records)?;
        }
        self.out.write_all(header.as_bytes())
    }

    fn extended(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = ::tar::Header::new_ustar();
        header.as_mut_bytes()[..9].copy_from_slice(b"PaxHeader");
        header.as_mut_bytes()[156] = b'x';
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        let padding = records.len().next_multiple_of(BLOCK) - records.len();
        self.out.write_all(&[0; BLOCK][..padding])
    }
}

/// Puts a name into a field, or as much of it as fits after `too_long` recorded the whole.
fn put(field: &mut [u8], text: &[u8], too_long: impl FnOnce()) {
    if text.len() > field.len() || !text.is_ascii() {
        too_long();
    }
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
}

/// The name under which readers that know no sparse files see one, after GNU tar's example.
fn sparse_stand_in(name: &[u8]) -> Vec<u8> {
    let at = name.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    [&name[..at], b"GNUSparseFile.0/", &name[at..]].concat()
}
