//! Checks of a qcow2 image before the library sees it: of its header and of the two tables that are read at once
//! (docs/interop/qcow2.txt in QEMU). imago 0.2.6 does not look at encryption, takes tables of 32 MiB, and panics where a
//! table of feature names ends in the middle of a name or where two entries of a table share a cluster.
//!
//! What an image may cost this process is bounded here: 128 mappings and 32 counts of clusters are cached per layer
//! (`Qcow2::do_open`), each as long as a cluster, besides the two tables.

use std::fs::File;
use std::io;
use std::ops::Range;

use thiserror::Error;

use super::length;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2, and the least of version 3.
const LENGTH_2: usize = 72;
const LENGTH_3: usize = 104;
/// Bits of a cluster's size that are served: 4 KiB to 256 KiB. Larger ones would let the caches grow to hundreds of MiB,
/// smaller ones need tables that are larger than the disk is worth.
const CLUSTER_BITS: Range<u32> = 12..19;
/// The most bytes of each of the two tables. With clusters of 64 KiB this is a disk of 64 TiB.
const MAX_TABLE: u64 = 1 << 20;
/// The longest name of a backing file.
const MAX_NAME: u32 = 1023;
/// The logarithm of a count's bits: 16 are what every program makes.
const COUNT_ORDER: u32 = 4;

/// Header extensions.
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
/// Bytes of a feature's name with its kind and number.
const FEATURE_NAME: u32 = 48;

/// Features without which an image cannot be read. Each has a reason why it is not served.
const INCOMPATIBLE: [(u64, HeaderError); 5] = [
    (1 << 0, HeaderError::Unclean),
    (1 << 1, HeaderError::Corrupt),
    (1 << 2, HeaderError::DataFile),
    (1 << 3, HeaderError::Compression),
    (1 << 4, HeaderError::Subclusters),
];

/// Why an image is not served.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// Something else.
    #[error("it is no qcow2 image")]
    Other,
    /// A version that there is not, or that cannot be written.
    #[error("it is a qcow2 image of version {version}; {} is served", if *.writable { "version 3" } else { "version 2 or 3" })]
    Version {
        /// Which.
        version: u32,
        /// Whether it is to be written to.
        writable: bool,
    },
    /// Clusters of a wrong size.
    #[error("its clusters have 2^{0} bytes; 2^{low} to 2^{high} are served", low = CLUSTER_BITS.start, high = CLUSTER_BITS.end - 1)]
    ClusterSize(u32),
    /// Encryption.
    #[error("it is encrypted, which is not served")]
    Encrypted,
    /// It was written to and not closed.
    #[error("it was not closed cleanly: \"qemu-img check -r all\" repairs it")]
    Unclean,
    /// It says so itself.
    #[error("it is marked as corrupt: \"qemu-img check -r all\" may repair it")]
    Corrupt,
    /// Its data lie in another file.
    #[error("its data lie in another file, which is not served")]
    DataFile,
    /// Zstandard, or what comes later.
    #[error("it is compressed in another way than by deflate, which is not served")]
    Compression,
    /// Extended mappings.
    #[error("it has subclusters, which are not served")]
    Subclusters,
    /// What is not known here.
    #[error("it has features that are not known here: {0:#x}")]
    Features(u64),
    /// Snapshots inside the image.
    #[error("it has snapshots inside, with which it cannot be written to")]
    Snapshots,
    /// Counts of clusters of an unusual width.
    #[error("its reference counts have 2^{0} bits; 2^{COUNT_ORDER} are served")]
    CountWidth(u32),
    /// A part of the header that contradicts another, or the file.
    #[error("its {0} is wrong")]
    Wrong(&'static str),
    /// Too large.
    #[error("its {0} is larger than what is served")]
    TooLarge(&'static str),
    /// What the host says.
    #[error("it cannot be read: {0}")]
    Host(#[from] io::Error),
}

/// What a header says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Bytes of the file.
    pub file: u64,
    /// Whether it names a backing file.
    pub backing: bool,
    /// The format that it says the backing file has.
    pub backing_format: Option<String>,
}

/// Fields of a header, which is in the file's first cluster.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// A number at an offset; beyond the end all is zero.
    fn word(&self, at: usize) -> u32 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }
}

/// Reads and checks the header of an image and its tables.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(file: &mut File, writable: bool) -> Result<Header, HeaderError> {
    let len = length(file)?;
    let mut start = [0; LENGTH_3];
    read(file, &mut start, 0)?;
    let fields = Fields(&start);
    let version = fields.word(4);
    if fields.word(0) != MAGIC || len < LENGTH_2 as u64 {
        return Err(HeaderError::Other);
    }
    if !(version == 3 || (version == 2 && !writable)) {
        return Err(HeaderError::Version { version, writable });
    }
    let bits = fields.word(20);
    if !CLUSTER_BITS.contains(&bits) {
        return Err(HeaderError::ClusterSize(bits));
    }
    let cluster = 1u64 << bits;
    if fields.word(32) != 0 {
        return Err(HeaderError::Encrypted);
    }
    let mut first = vec![0; cluster as usize];
    read(file, &mut first, 0)?;
    let fields = Fields(&first);
    let backing_format = if version == 3 { check_version_3(&fields, cluster)? } else { None };
    if writable && fields.word(60) != 0 {
        return Err(HeaderError::Snapshots);
    }
    let (name, name_len) = (fields.long(8), fields.word(16));
    if name != 0 && (name_len > MAX_NAME || name.checked_add(name_len.into()).is_none_or(|end| end >= cluster)) {
        return Err(HeaderError::Wrong("backing file's name"));
    }
    let header = Header { size: fields.long(24), cluster, file: len, backing: name != 0, backing_format };
    let tables = check_mappings(file, &header, &fields)?;
    if writable {
        let blocks = check_counts(file, &header, &fields)?;
        count_tables(file, &header, &tables, &blocks)?;
    }
    Ok(header)
}

/// Checks what version 3 added, and gives the format of the backing file if it is told.
fn check_version_3(fields: &Fields<'_>, cluster: u64) -> Result<Option<String>, HeaderError> {
    let features = fields.long(72);
    for (bit, error) in INCOMPATIBLE {
        if features & bit != 0 {
            return Err(error);
        }
    }
    if features != 0 {
        return Err(HeaderError::Features(features));
    }
    if fields.word(96) != COUNT_ORDER {
        return Err(HeaderError::CountWidth(fields.word(96)));
    }
    let mut at = u64::from(fields.word(100));
    if at < LENGTH_3 as u64 || at > cluster || !at.is_multiple_of(8) {
        return Err(HeaderError::Wrong("header's length"));
    }
    let mut format = None;
    loop {
        if at + 8 > cluster {
            return Err(HeaderError::Wrong("list of header extensions"));
        }
        let (kind, len) = (fields.word(at as usize), fields.word(at as usize + 4));
        let start = at + 8;
        let end = start + u64::from(len);
        if end > cluster {
            return Err(HeaderError::Wrong("list of header extensions"));
        }
        match kind {
            EXTENSION_END if len != 0 => return Err(HeaderError::Wrong("list of header extensions")),
            EXTENSION_END => return Ok(format),
            EXTENSION_DATA_FILE => return Err(HeaderError::DataFile),
            EXTENSION_FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME) => {
                return Err(HeaderError::Wrong("table of feature names"));
            }
            EXTENSION_BACKING_FORMAT => {
                let bytes = fields.0.get(start as usize..end as usize).unwrap_or_default();
                let text = std::str::from_utf8(bytes).map_err(|_| HeaderError::Wrong("backing file's format"))?;
                if format.replace(text.to_owned()).is_some() {
                    return Err(HeaderError::Wrong("backing file's format"));
                }
            }
            _ => {}
        }
        at = start + u64::from(len).next_multiple_of(8);
    }
}

/// Checks the first level of mappings ("L1 table"), and gives where those of the second level are.
fn check_mappings(file: &File, header: &Header, fields: &Fields<'_>) -> Result<Vec<u64>, HeaderError> {
    let (entries, offset) = (u64::from(fields.word(36)), fields.long(40));
    // A table of the second level fills a cluster.
    let each = header.cluster / 8 * header.cluster;
    let needed = header.size.div_ceil(each);
    if needed > MAX_TABLE / 8 || header.size > i64::MAX as u64 {
        return Err(HeaderError::TooLarge("size"));
    }
    if entries > MAX_TABLE / 8 {
        return Err(HeaderError::TooLarge("table of mappings"));
    }
    if entries < needed {
        return Err(HeaderError::Wrong("table of mappings"));
    }
    // The highest bit says that the table is counted once, the other ones besides the offset are reserved.
    let tables = read_table(file, header, (offset, entries * 8), "table of mappings", 1 << 63)?;
    check_places(header, tables.clone(), "table of mappings")?;
    Ok(tables)
}

/// Checks the first level of counts ("refcount table"), and gives where those of the second level are.
fn check_counts(file: &File, header: &Header, fields: &Fields<'_>) -> Result<Vec<u64>, HeaderError> {
    let wrong = HeaderError::Wrong("table of reference counts");
    let (offset, clusters) = (fields.long(48), u64::from(fields.word(56)));
    if clusters > MAX_TABLE / header.cluster {
        return Err(HeaderError::TooLarge("table of reference counts"));
    }
    let table = (offset, clusters * header.cluster);
    let mappings = (fields.long(40), u64::from(fields.word(36)) * 8);
    if clusters == 0 || (table.0 < mappings.0 + mappings.1 && mappings.0 < table.0 + table.1) {
        return Err(wrong);
    }
    let blocks = read_table(file, header, table, "table of reference counts", 0)?;
    // Who looks for a free cluster goes through all counts: there are none of what is far beyond the end of the file. The
    // header is counted in any case.
    let each = header.cluster / 2 * header.cluster;
    let last = blocks.iter().rposition(|place| *place != 0).unwrap_or(0) as u64;
    if blocks.first().is_none_or(|place| *place == 0) || last > header.file / each + 1 {
        return Err(wrong);
    }
    check_places(header, blocks.clone(), "table of reference counts")?;
    Ok(blocks)
}

/// Counts the tables of the second level that are not.
///
/// The library links a new table before the count of its cluster is in the file (`Qcow2::ensure_l2` and
/// `Allocator::ensure_rb` of imago 0.2.6). Where the process or the host ended in between, the cluster would be given away
/// again. Such a table is otherwise whole: it is written before it is linked, and what is in it was counted before.
fn count_tables(file: &File, header: &Header, tables: &[u64], blocks: &[u64]) -> Result<(), HeaderError> {
    let each = header.cluster / 2;
    for place in tables.iter().chain(blocks).filter(|place| **place != 0) {
        let number = place / header.cluster;
        let block = usize::try_from(number / each).ok().and_then(|index| blocks.get(index));
        let Some(block) = block.filter(|block| **block != 0) else {
            return Err(HeaderError::Wrong("table of reference counts"));
        };
        let (at, mut count) = (block + number % each * 2, [0; 2]);
        read(file, &mut count, at)?;
        if count == [0; 2] {
            rustix::io::pwrite(file, &1u16.to_be_bytes(), at).map_err(io::Error::from)?;
        }
    }
    Ok(())
}

/// Reads a table at an offset, of so many bytes, and gives the places that are its entries without those `flags`.
fn read_table(
    file: &File,
    header: &Header,
    (offset, len): (u64, u64),
    what: &'static str,
    flags: u64,
) -> Result<Vec<u64>, HeaderError> {
    let inside = offset.checked_add(len).is_some_and(|end| end <= header.file.next_multiple_of(header.cluster));
    // The first cluster is the header's.
    if len != 0 && (!inside || !offset.is_multiple_of(header.cluster) || offset == 0) {
        return Err(HeaderError::Wrong(what));
    }
    let mut bytes = vec![0; len as usize];
    read(file, &mut bytes, offset)?;
    let (entries, _) = bytes.as_chunks::<8>();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry) & !flags).collect())
}

/// Checks that places are different clusters of the file.
fn check_places(header: &Header, mut places: Vec<u64>, what: &'static str) -> Result<(), HeaderError> {
    places.retain(|place| *place != 0);
    places.sort_unstable();
    let inside = |place: &u64| place.is_multiple_of(header.cluster) && *place < header.file;
    if !places.iter().all(inside) || places.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(HeaderError::Wrong(what));
    }
    Ok(())
}

/// Reads as much as there is; the rest is zero.
fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut bytes[at..], offset + at as u64))? {
            0 => break,
            count => at += count,
        }
    }
    Ok(())
}
