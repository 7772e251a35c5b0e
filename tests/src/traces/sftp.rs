//! Recorded SFTP sessions (draft-ietf-secsh-filexfer-02).

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};

use crate::traces::compare::Faults;
use crate::traces::{Packet, Side};

const TYPES: &[(&str, u8)] = &[
    ("INIT", 1),
    ("VERSION", 2),
    ("OPEN", 3),
    ("CLOSE", 4),
    ("READ", 5),
    ("WRITE", 6),
    ("LSTAT", 7),
    ("FSTAT", 8),
    ("SETSTAT", 9),
    ("FSETSTAT", 10),
    ("OPENDIR", 11),
    ("READDIR", 12),
    ("REMOVE", 13),
    ("MKDIR", 14),
    ("RMDIR", 15),
    ("REALPATH", 16),
    ("STAT", 17),
    ("RENAME", 18),
    ("READLINK", 19),
    ("SYMLINK", 20),
    ("STATUS", 101),
    ("HANDLE", 102),
    ("DATA", 103),
    ("NAME", 104),
    ("ATTRS", 105),
    ("EXTENDED", 200),
];

/// Requests that begin with a handle.
const WITH_HANDLE: &[&str] = &["CLOSE", "READ", "WRITE", "FSTAT", "FSETSTAT", "READDIR"];

/// Sends what the client sent and holds each answer against the recorded one.
///
/// # Errors
/// Where the connection ends early.
pub fn replay(mut stream: impl Read + Write, packets: &[Packet], faults: &mut Faults) -> io::Result<()> {
    let mut handles: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for (index, Packet(side, kind, content)) in packets.iter().enumerate() {
        if *side == Side::Server {
            continue;
        }
        let mut content = bytes(content);
        let id = content[..4].to_vec();
        if WITH_HANDLE.contains(&kind.as_str()) {
            let (handle, rest) = string(&content[4..]);
            let ours = handles.get(handle).map_or(handle, Vec::as_slice);
            let length = u32::try_from(ours.len()).map_err(io::Error::other)?;
            content = [&id, length.to_be_bytes().as_slice(), ours, rest].concat();
        }
        send(&mut stream, number(kind), &content)?;
        let (got, answer) = receive(&mut stream)?;
        let place = format!("packet {index}, {kind}");
        let initial = kind == "INIT";
        let recorded = packets[index..].iter().find_map(|Packet(side, kind, content)| {
            let content = bytes(content);
            let found = *side == Side::Server && (initial || content[..4] == id[..]);
            found.then(|| (kind.clone(), content))
        });
        let Some((expected, content)) = recorded else { continue };
        if number(&expected) != got {
            faults.push((place, format!("is answered with {got} instead of {expected}: {answer:?}")));
            continue;
        }
        if expected == "HANDLE" {
            handles.insert(string(&content[4..]).0.to_vec(), string(&answer[4..]).0.to_vec());
        }
        let (theirs, ours) = (facts(&expected, &content), facts(&expected, &answer));
        if theirs != ours {
            faults.push((place, format!("is answered with {ours:?} instead of {theirs:?}")));
        }
    }
    Ok(())
}

/// What of an answer is the same whoever gives it.
fn facts(kind: &str, content: &[u8]) -> BTreeSet<Vec<u8>> {
    match kind {
        // The version; what extensions there are is not the same.
        "VERSION" => [content[..4].to_vec()].into(),
        // The code.
        "STATUS" => [content[4..8].to_vec()].into(),
        "DATA" => [content[4..].to_vec()].into(),
        // Of a file's attributes its size, owner and mode; the sizes of folders are their filesystem's.
        "ATTRS" if content[24] >> 4 == 4 => [content[16..28].to_vec()].into(),
        "ATTRS" => [content[8..28].to_vec()].into(),
        // How many there are, and a single one's name: of more the recording kept only the beginning.
        "NAME" if content[4..8] == [0, 0, 0, 1] => [string(&content[8..]).0.to_vec()].into(),
        "NAME" => [content[4..8].to_vec()].into(),
        _ => BTreeSet::new(),
    }
}

fn number(kind: &str) -> u8 {
    TYPES.iter().find(|(name, _)| *name == kind).map_or_else(|| panic!("no SFTP packet {kind}"), |(_, number)| *number)
}

/// The string at the beginning, and what follows it.
fn string(content: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = content.split_first_chunk::<4>().expect("a string's length");
    rest.split_at(usize::try_from(u32::from_be_bytes(*length)).expect("a length"))
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal"))
        .collect()
}

fn send(stream: &mut impl Write, kind: u8, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len() + 1).map_err(io::Error::other)?;
    stream.write_all(&[length.to_be_bytes().as_slice(), &[kind], content].concat())
}

fn receive(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let mut content = vec![0; usize::try_from(length).map_err(io::Error::other)? - 1];
    stream.read_exact(&mut content)?;
    Ok((head[4], content))
}
