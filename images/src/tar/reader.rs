//! Reading a tar archive, one entry at a time, in bounded memory.
//!
//! Understood: v7, ustar, GNU (long names, base-256 numbers, sparse files) and PAX (names, sizes, ids, times, extended
//! attributes of GNU tar, Go and libarchive, ACLs, sparse files, global headers). An archive must end as the format
//! says, with a block of zeros; one that just stops was cut off.

use std::io::{self, BufRead};

use super::pax::{self, Record};
use super::sparse::{self, Segment};
use super::{BLOCK, checksum_matches};
use crate::acl;
use crate::entry::{Attributes, EntryKind, Timestamp, show};
use crate::limits::Limits;
use crate::{ImageError, Result};

/// One member of an archive, extended headers applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// The name as the archive spells it; [`crate::entry::CleanPath`] makes it safe.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, time, extended attributes.
    pub attributes: Attributes,
    /// The apparent size of a regular file, holes included.
    pub size: u64,
    /// Where the data of a regular file belongs, in order; one run from 0 unless it is sparse.
    pub segments: Vec<Segment>,
}

impl TarEntry {
    /// Bytes of data that the archive holds for this entry.
    pub fn data_size(&self) -> u64 {
        self.segments.iter().map(|s| s.length).sum()
    }
}

/// An archive being read.
#[derive(Debug)]
pub struct TarReader<R> {
    source: R,
    limits: Limits,
    globals: Vec<Record>,
    /// Bytes of the current entry's data not read yet, and of the padding after it.
    data: u64,
    padding: u64,
    /// The current entry's name, for messages.
    current: String,
    first: bool,
}

/// What the headers before an entry's own say about it.
#[derive(Default)]
struct Extensions {
    records: Vec<Record>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.long_name.is_none() && self.long_link.is_none()
    }

    /// The last record with this key: later ones override.
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.iter().rev().find(|r| r.key == key).map(|r| r.value.as_slice())
    }

    fn number(&self, key: &[u8], name: &str) -> Result<Option<u64>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match pax::decimal(text) {
            Some(number) => Ok(Some(number)),
            None => Err(ImageError::Damaged(format!("the {} of {name:?} is not a number", show(key)))),
        }
    }
}

impl<R: BufRead> TarReader<R> {
    /// Begins to read an archive.
    pub fn new(source: R, limits: &Limits) -> TarReader<R> {
        TarReader {
            source,
            limits: limits.clone(),
            globals: Vec::new(),
            data: 0,
            padding: 0,
            current: String::new(),
            first: true,
        }
    }

    /// The source, at wherever the reading stands.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// The source, to ask how far it is.
    pub fn get_ref(&self) -> &R {
        &self.source
    }

    /// The next entry, or `None` after the archive's proper end. What was not read of the entry before is skipped.
    ///
    /// # Errors
    /// [`ImageError::Truncated`] and [`ImageError::Damaged`] as the bytes are.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                if !extensions.is_empty() {
                    return Err(ImageError::Damaged("it ends with an extended header that belongs to no entry".into()));
                }
                return Ok(None);
            };
            let flag = header.as_bytes()[156];
            match flag {
                b'x' | b'X' => {
                    let data = self.extension_data(&header, "an extended header")?;
                    extensions.records.extend(records(&data)?);
                }
                b'g' => {
                    let data = self.extension_data(&header, "a global header")?;
                    self.globals.extend(records(&data)?);
                    if self.globals.iter().map(|r| (r.key.len() + r.value.len()) as u64).sum::<u64>()
                        > self.limits.max_header
                    {
                        return Err(self.too_long("its global headers"));
                    }
                }
                b'L' => extensions.long_name = Some(trim_nul(self.extension_data(&header, "a long name")?)),
                b'K' => extensions.long_link = Some(trim_nul(self.extension_data(&header, "a long link name")?)),
                _ => {
                    let mut all = std::mem::take(&mut extensions.records);
                    extensions.records = self.globals.clone();
                    extensions.records.append(&mut all);
                    return self.entry(&header, flag, &extensions).map(Some);
                }
            }
        }
    }

    /// The next bytes of the current entry's data; empty at its end. Follow with [`TarReader::consume`].
    ///
    /// # Errors
    /// When the source fails or ends early.
    pub fn data(&mut self) -> Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let buffer = self.source.fill_buf().map_err(|e| read_error(e, quoted(&self.current)))?;
        if buffer.is_empty() {
            return Err(ImageError::Truncated { within: quoted(&self.current) });
        }
        let n = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        Ok(&buffer[..n])
    }

    /// Marks bytes that [`TarReader::data`] gave as used.
    pub fn consume(&mut self, amount: usize) {
        self.source.consume(amount);
        self.data -= amount as u64;
    }

    /// Reads all of the current entry's data.
    ///
    /// # Errors
    /// As [`TarReader::data`]; [`ImageError::Limit`] when it is more than `most` bytes.
    pub fn read_all(&mut self, most: u64) -> Result<Vec<u8>> {
        if self.data > most {
            let what = format!("the size of {:?} ({} bytes)", self.current, self.data);
            return Err(ImageError::Limit { what, limit: most });
        }
        let mut out = Vec::new();
        loop {
            let piece = self.data()?;
            if piece.is_empty() {
                return Ok(out);
            }
            out.extend_from_slice(piece);
            let n = piece.len();
            self.consume(n);
        }
    }

    /// After `None`: checks that nothing but padding follows, and reads it.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when there is more.
    pub fn finish(&mut self) -> Result<()> {
        loop {
            let buffer = self.source.fill_buf().map_err(|e| read_error(e, "the padding at its end"))?;
            if buffer.is_empty() {
                return Ok(());
            }
            if buffer.iter().any(|b| *b != 0) {
                return Err(ImageError::Damaged("something follows the end of the archive".into()));
            }
            let n = buffer.len();
            self.source.consume(n);
        }
    }

    /// The next header block, or `None` at the end mark.
    fn header(&mut self) -> Result<Option<::tar::Header>> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let n = match io::Read::read(&mut self.source, &mut block[filled..]) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(e, "a header")),
            };
            if n == 0 {
                let within = if filled > 0 { "a header" } else { "its list of entries (the end mark is missing)" };
                return Err(ImageError::Truncated { within: within.into() });
            }
            filled += n;
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        if !checksum_matches(&block) {
            let problem = if self.first {
                format!("what it holds is no tar archive: it {}", crate::format::foreign(&block))
            } else {
                "a header's checksum is wrong".into()
            };
            return Err(ImageError::Damaged(problem));
        }
        self.first = false;
        let mut header = ::tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        Ok(Some(header))
    }

    /// Reads the data of an extended header.
    fn extension_data(&mut self, header: &::tar::Header, what: &str) -> Result<Vec<u8>> {
        let size = header.entry_size().map_err(|_| ImageError::Damaged(format!("{what} has no clear size")))?;
        if size > self.limits.max_header {
            return Err(self.too_long(what));
        }
        what.clone_into(&mut self.current);
        self.expect_data(size);
        self.read_all(size)
    }

    fn too_long(&self, what: &str) -> ImageError {
        ImageError::Limit { what: format!("the size of {what}"), limit: self.limits.max_header }
    }

    fn expect_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn skip_rest(&mut self) -> Result<()> {
        while self.data > 0 {
            let n = self.data()?.len();
            self.consume(n);
        }
        while self.padding > 0 {
            let buffer = self.source.fill_buf().map_err(|e| read_error(e, quoted(&self.current)))?;
            if buffer.is_empty() {
                return Err(ImageError::Truncated { within: quoted(&self.current) });
            }
            let n = (self.padding as usize).min(buffer.len()); // less than a block
            self.source.consume(n);
            self.padding -= n as u64;
        }
        Ok(())
    }

    fn entry(&mut self, header: &::tar::Header, flag: u8, extensions: &Extensions) -> Result<TarEntry> {
        let most = usize::try_from(self.limits.max_header).unwrap_or(usize::MAX) / 16;
        let sparse = sparse::from_records(&extensions.records, most).map_err(|e| ImageError::Damaged(e.into()))?;
        let name = sparse
            .as_ref()
            .and_then(|s| s.name.clone())
            .or_else(|| extensions.get(b"path").map(<[u8]>::to_vec))
            .or_else(|| extensions.long_name.clone())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        self.current = show(&name);
        let kind = self.kind(header, flag, extensions, &name)?;
        let attributes = self.attributes(header, extensions)?;
        let mut entry = TarEntry { name, kind, attributes, size: 0, segments: Vec::new() };
        if entry.kind != EntryKind::File {
            // Like Go's reader and GNU tar: entries of other kinds have no data, whatever their size field says.
            self.expect_data(0);
            return Ok(entry);
        }
        let stored = match extensions.number(b"size", &self.current)? {
            Some(size) => size,
            None => header.entry_size().map_err(|_| self.damaged("has no clear size"))?,
        };
        if stored > i64::MAX as u64 {
            return Err(self.damaged("has an impossible size"));
        }
        self.expect_data(stored);
        (entry.size, entry.segments) = match (sparse, flag) {
            (Some(sparse), _) => {
                let segments = if sparse.in_data {
                    let (segments, taken) = sparse::from_data(&mut self.source, self.data, most, &self.current)?;
                    self.data -= taken;
                    segments
                } else {
                    sparse.segments
                };
                let size = sparse.size.ok_or_else(|| self.damaged("is sparse but has no real size"))?;
                (size, segments)
            }
            (None, b'S') => self.old_gnu_sparse(header, most)?,
            (None, _) => (stored, vec![Segment { offset: 0, length: stored }]),
        };
        sparse::check(&entry.segments, entry.size, self.data).map_err(|e| self.damaged_because(e))?;
        Ok(entry)
    }

    fn kind(&self, header: &::tar::Header, flag: u8, extensions: &Extensions, name: &[u8]) -> Result<EntryKind> {
        let target = || -> Result<Vec<u8>> {
            let target = extensions
                .get(b"linkpath")
                .map(<[u8]>::to_vec)
                .or_else(|| extensions.long_link.clone())
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default();
            if target.is_empty() || target.contains(&0) || target.len() >= 4096 {
                return Err(self.damaged("is a link with an impossible target"));
            }
            Ok(target)
        };
        let device = || -> Result<(u32, u32)> {
            match (header.device_major(), header.device_minor()) {
                (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
                _ => Err(self.damaged("is a device without clear numbers")),
            }
        };
        Ok(match flag {
            // Before ustar, a directory was a file whose name ends with a slash.
            b'0' | 0 if name.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink(target()?),
            b'2' => EntryKind::Symlink(target()?),
            b'3' => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(self.damaged(&format!("is of an unknown type ({:?})", char::from(other)))),
        })
    }

    fn attributes(&self, header: &::tar::Header, extensions: &Extensions) -> Result<Attributes> {
        let id = |key: &[u8], stored: io::Result<u64>| -> Result<u32> {
            let number = match extensions.number(key, &self.current)? {
                Some(number) => number,
                None => stored.map_err(|_| self.damaged(&format!("has no clear {}", show(key))))?,
            };
            // (uid_t) -1 means "unchanged" to chown.
            u32::try_from(number)
                .ok()
                .filter(|n| *n != u32::MAX)
                .ok_or_else(|| self.damaged(&format!("has an impossible {}", show(key))))
        };
        let mode = header.mode().map_err(|_| self.damaged("has no clear mode"))? & 0o7777;
        let mtime = match extensions.get(b"mtime") {
            Some(text) => pax::time(text).ok_or_else(|| self.damaged("has no clear time"))?,
            // Times before 1970 do not fit the field's usual form; nothing depends on them.
            None => Timestamp {
                seconds: header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0),
                nanoseconds: 0,
            },
        };
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for record in &extensions.records {
            if let Some((name, value)) = self.xattr(record)? {
                if value.len() > self.limits.max_xattr {
                    let what = format!("the size of the attribute {:?} of {:?}", show(&name), self.current);
                    return Err(ImageError::Limit { what, limit: self.limits.max_xattr as u64 });
                }
                // GNU tar and libarchive may both have written the same one.
                xattrs.retain(|(n, _)| *n != name);
                xattrs.push((name, value));
            }
        }
        Ok(Attributes { mode, uid: id(b"uid", header.uid())?, gid: id(b"gid", header.gid())?, mtime, xattrs })
    }

    fn xattr(&self, record: &Record) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let Record { key, value } = record;
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return Ok(Some((name.to_vec(), value.clone())));
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            return match (pax::percent_decode(name), pax::base64_decode(value)) {
                (Some(name), Some(value)) => Ok(Some((name, value))),
                _ => Err(self.damaged("has an extended attribute in an unclear encoding")),
            };
        }
        if key == acl::ACCESS_TEXT || key == acl::DEFAULT_TEXT {
            return acl::to_xattr(key, value).map(Some).map_err(|e| self.damaged_because(&e));
        }
        Ok(None)
    }

    /// The old GNU form: four runs in the header, 21 more in each block that follows.
    fn old_gnu_sparse(&mut self, header: &::tar::Header, most: usize) -> Result<(u64, Vec<Segment>)> {
        let gnu = header.as_gnu().ok_or_else(|| self.damaged("is sparse in an unknown way"))?;
        let unclear = |_| self.damaged_because("a sparse file's map is not made of numbers");
        let size = gnu.real_size().map_err(unclear)?;
        let mut segments = Vec::new();
        let push = |raw: &::tar::GnuSparseHeader, segments: &mut Vec<Segment>| -> io::Result<()> {
            if !raw.is_empty() {
                segments.push(Segment { offset: raw.offset()?, length: raw.length()? });
            }
            Ok(())
        };
        for raw in &gnu.sparse {
            push(raw, &mut segments).map_err(unclear)?;
        }
        let mut more = gnu.is_extended();
        while more {
            if segments.len() > most {
                return Err(self.damaged_because("a sparse file's map is too long"));
            }
            let mut extended = ::tar::GnuExtSparseHeader::new();
            self.source.read_exact(extended.as_mut_bytes()).map_err(|e| read_error(e, quoted(&self.current)))?;
            for raw in extended.sparse() {
                push(raw, &mut segments)
                    .map_err(|_| self.damaged_because("a sparse file's map is not made of numbers"))?;
            }
            more = extended.is_extended();
        }
        Ok((size, segments))
    }

    fn damaged(&self, what: &str) -> ImageError {
        ImageError::Damaged(format!("{:?} {what}", self.current))
    }

    fn damaged_because(&self, why: &str) -> ImageError {
        ImageError::Damaged(format!("{why} ({:?})", self.current))
    }
}

fn records(data: &[u8]) -> Result<Vec<Record>> {
    pax::parse(data).map_err(|e| ImageError::Damaged(format!("in an extended header, {e}")))
}

fn trim_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|b| *b == 0) {
        data.truncate(end);
    }
    data
}

fn quoted(name: &str) -> String {
    format!("{name:?}")
}

/// Errors of our own that travelled through `io::Error` come out as they went in.
fn read_error(error: io::Error, within: impl Into<String>) -> ImageError {
    let within = within.into();
    if error.get_ref().is_some_and(|inner| inner.is::<ImageError>()) {
        if let Some(inner) = error.into_inner().and_then(|inner| inner.downcast::<ImageError>().ok()) {
            return *inner;
        }
        return ImageError::Damaged(format!("it cannot be read ({within})"));
    }
    ImageError::read(error, within)
}
