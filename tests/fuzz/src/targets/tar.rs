//! The tar format alone: headers, extended headers, sparse maps.

use duet_images::Result;
use duet_images::tar::TarReader;

use super::archive::limits;
use crate::assert_sentence;

/// Takes an archive.
pub fn run(data: &[u8]) {
    let mut reader = TarReader::new(data, &limits());
    if let Err(error) = read(&mut reader) {
        assert_sentence(&error.to_string());
        assert!(error.is_bad_image(), "not told as the image's fault: {error:?}");
    }
}

/// Reads an archive to its end: the data of each entry whole, in part, or not at all.
fn read(reader: &mut TarReader<&[u8]>) -> Result<()> {
    let mut number = 0;
    while reader.next_entry()?.is_some() {
        match number % 3 {
            0 => drop(reader.read_all(64 << 10)?),
            1 => {
                let some = reader.data()?.len() / 2;
                reader.consume(some);
            }
            _ => {}
        }
        number += 1;
    }
    reader.finish()
}

fn entry(flag: u8, name: &str, target: &str, data: &[u8]) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[157..157 + target.len()].copy_from_slice(target.as_bytes());
    bytes[156] = flag;
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

pub(super) fn file(name: &str, data: &str) -> Vec<u8> {
    entry(b'0', name, "", data.as_bytes())
}

pub(super) fn folder(name: &str) -> Vec<u8> {
    entry(b'5', name, "", b"")
}

pub(super) fn link(flag: u8, name: &str, target: &str) -> Vec<u8> {
    entry(flag, name, target, b"")
}

/// An archive of these entries.
pub(super) fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = entries.concat();
    out.resize(out.len() + 1024, 0);
    out
}

/// What each kind of header looks like.
pub fn seeds() -> Vec<Vec<u8>> {
    let sparse = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=file\n26 GNU.sparse.realsize=9\n";
    vec![
        archive(&[file("a", "some bytes"), folder("b/"), link(b'2', "c", "a"), link(b'1', "d", "a")]),
        archive(&[entry(b'x', "pax", "", b"12 path=name\n20 SCHILY.xattr.a=b\n"), file("a", "")]),
        archive(&[entry(b'g', "pax", "", b"14 mtime=1.25\n"), file("a", "x")]),
        archive(&[entry(b'L', "././@LongLink", "", &[b'n'; 200]), entry(b'K', "k", "", b"target\0"), file("a", "")]),
        archive(&[entry(b'x', "pax", "", sparse.as_bytes()), file("a", "1\n0\n9\n")]),
        archive(&[entry(b'S', "old", "", b"data"), entry(b'3', "dev", "", b""), entry(b'7', "odd", "", b"x")]),
    ]
}
