//! Maps of sparse files: the old GNU header, and the PAX forms 0.0, 0.1 and 1.0 that GNU tar describes in its manual
//! ("Storing Sparse Files").

use std::io::BufRead;

use super::BLOCK;
use super::pax::{Record, decimal};
use crate::{ImageError, Result};

/// A run of bytes that the archive has; what is between two runs reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it belongs.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Where a sparse file's map is to be found.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    /// The map is at the start of the data (1.0).
    pub in_data: bool,
    /// The map of 0.0 or 0.1.
    pub segments: Vec<Segment>,
    /// The file's apparent size.
    pub size: Option<u64>,
    /// The file's real name, where the header's is a stand-in.
    pub name: Option<Vec<u8>>,
}

/// Reads the sparse keys of an extended header; `None` when it has none.
pub(super) fn from_records(records: &[Record], most: usize) -> std::result::Result<Option<PaxSparse>, &'static str> {
    let mut sparse = PaxSparse::default();
    let (mut major, mut minor, mut seen) = (0, 0, false);
    let mut offset = None;
    for Record { key, value } in records {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else { continue };
        seen = true;
        let number = || decimal(value).ok_or("a sparse file's map is not made of numbers");
        match key {
            b"major" => major = number()?,
            b"minor" => minor = number()?,
            b"name" => sparse.name = Some(value.clone()),
            b"size" | b"realsize" => sparse.size = Some(number()?),
            b"offset" => offset = Some(number()?),
            b"numbytes" => {
                let offset = offset.take().ok_or("a sparse file's map has a length without an offset")?;
                sparse.segments.push(Segment { offset, length: number()? });
            }
            b"map" => sparse.segments = pairs(value.split(|b| *b == b','))?,
            _ => {}
        }
        if sparse.segments.len() > most {
            return Err("a sparse file's map is too long");
        }
    }
    if !seen {
        return Ok(None);
    }
    match (major, minor) {
        (1, 0) => sparse.in_data = true,
        (0, _) => {}
        _ => return Err("a sparse file's map is of an unknown version"),
    }
    Ok(Some(sparse))
}

fn pairs<'a>(mut numbers: impl Iterator<Item = &'a [u8]>) -> std::result::Result<Vec<Segment>, &'static str> {
    let mut segments = Vec::new();
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or("a sparse file's map has an odd number of numbers")?;
        match (decimal(offset), decimal(length)) {
            (Some(offset), Some(length)) => segments.push(Segment { offset, length }),
            _ => return Err("a sparse file's map is not made of numbers"),
        }
    }
    Ok(segments)
}

/// Reads the 1.0 form's map from the start of the data: a count, then offsets and lengths, a decimal number per line,
/// padded to a whole block. Returns the map and how many bytes of the data it took.
pub(super) fn from_data<R: BufRead>(
    source: &mut R,
    available: u64,
    most: usize,
    name: &str,
) -> Result<(Vec<Segment>, u64)> {
    let damaged = |text: &str| ImageError::Damaged(format!("{text} ({name:?})"));
    let mut taken = 0u64;
    let mut block = [0u8; BLOCK];
    let mut position = BLOCK;
    let mut next_number = |taken: &mut u64| -> Result<u64> {
        let mut text = Vec::with_capacity(20);
        loop {
            if position == BLOCK {
                if *taken + BLOCK as u64 > available {
                    return Err(damaged("a sparse file's map is longer than its data"));
                }
                source.read_exact(&mut block).map_err(|e| ImageError::read(e, name))?;
                *taken += BLOCK as u64;
                position = 0;
            }
            let byte = block[position];
            position += 1;
            match byte {
                b'\n' => return decimal(&text).ok_or_else(|| damaged("a sparse file's map is not made of numbers")),
                _ if text.len() < 20 => text.push(byte),
                _ => return Err(damaged("a sparse file's map is not made of numbers")),
            }
        }
    };
    let count = next_number(&mut taken)?;
    if count > most as u64 {
        return Err(damaged("a sparse file's map is too long"));
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        let offset = next_number(&mut taken)?;
        let length = next_number(&mut taken)?;
        segments.push(Segment { offset, length });
    }
    Ok((segments, taken))
}

/// Checks that a map is in order, within the file, and adds up to the data that the archive has.
pub(super) fn check(segments: &[Segment], size: u64, data: u64) -> std::result::Result<(), &'static str> {
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in segments {
        if segment.offset < end {
            return Err("a sparse file's map overlaps itself");
        }
        end = segment.offset.checked_add(segment.length).ok_or("a sparse file's map is too large")?;
        sum += segment.length; // cannot pass `end`
    }
    if end > size {
        return Err("a sparse file's map goes past the file's end");
    }
    if sum != data {
        return Err("a sparse file's map does not match its data");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> Record {
        Record { key: format!("GNU.sparse.{key}").into_bytes(), value: value.into() }
    }

    #[test]
    fn all_forms() {
        let v00 = [record("size", "100"), record("numblocks", "1"), record("offset", "10"), record("numbytes", "5")];
        let v01 = [record("size", "100"), record("map", "10,5"), record("name", "real")];
        for records in [&v00[..], &v01[..]] {
            let sparse = from_records(records, 10).unwrap().unwrap();
            assert_eq!(
                (sparse.segments.as_slice(), sparse.size),
                (&[Segment { offset: 10, length: 5 }][..], Some(100))
            );
        }
        let v10 = [record("major", "1"), record("minor", "0"), record("realsize", "100")];
        assert!(from_records(&v10, 10).unwrap().unwrap().in_data);
        let mut data = b"1\n10\n5\n".to_vec();
        data.resize(BLOCK, 0);
        let (segments, taken) = from_data(&mut data.as_slice(), 600, 10, "x").unwrap();
        assert_eq!((segments, taken), (vec![Segment { offset: 10, length: 5 }], 512));
        assert!(from_records(&[], 10).unwrap().is_none());
    }

    #[test]
    fn bad_maps() {
        let s = |offset, length| Segment { offset, length };
        assert!(check(&[s(0, 5), s(4, 1)], 10, 6).is_err());
        assert!(check(&[s(8, 5)], 10, 5).is_err());
        assert!(check(&[s(0, 5)], 10, 6).is_err());
        assert!(check(&[s(u64::MAX, 5)], u64::MAX, 5).is_err());
        assert!(check(&[s(0, 5), s(9, 0)], 10, 5).is_ok());
        assert!(from_records(&[record("map", "1,2,3")], 10).is_err());
        assert!(from_records(&[record("map", "1,2,3,4")], 1).is_err());
        assert!(from_records(&[record("major", "2")], 1).is_err());
        assert!(from_data(&mut &[b'1'; 600][..], 600, 10, "x").is_err());
        assert!(from_data(&mut &b"999999\n"[..], 600, 10, "x").is_err());
    }
}
