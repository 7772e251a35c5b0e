//! The greeting: how both sides find the beginning of a connection in a stream that may hold the rest of another.

use super::{OLDEST, VERSION};

/// What a hello begins with. Random, so that nothing else does by chance.
pub const MAGIC: [u8; 16] = *b"\xd0\xe7\x1fDuetAgent\x8a\x05\xc3\x9e";

/// How long a hello is, in bytes.
pub const LENGTH: usize = 32;

/// One side's greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The host: the newest version that it speaks. The guest: the version that is spoken from here on, or, if there is
    /// none in common, its own.
    pub version: u16,
    /// The oldest version that is understood.
    pub oldest: u16,
    /// Chosen by the host and repeated by the guest, which tells an answer to this hello from one to an earlier.
    pub nonce: u64,
}

impl Hello {
    /// The host's.
    #[must_use]
    pub fn ours(nonce: u64) -> Self {
        Self { version: VERSION, oldest: OLDEST, nonce }
    }

    /// The guest's answer; the flag says whether there is a version in common.
    #[must_use]
    pub fn answer(self) -> (Self, bool) {
        let fits = self.oldest <= VERSION && self.version >= OLDEST;
        let version = if fits { self.version.min(VERSION) } else { VERSION };
        (Self { version, oldest: OLDEST, nonce: self.nonce }, fits)
    }

    /// As it is sent.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        out[..16].copy_from_slice(&MAGIC);
        out[16..18].copy_from_slice(&self.version.to_le_bytes());
        out[18..20].copy_from_slice(&self.oldest.to_le_bytes());
        out[24..32].copy_from_slice(&self.nonce.to_le_bytes());
        out
    }

    /// Reads the bytes after [`MAGIC`]; four of them are kept for later and are not looked at.
    fn decode(rest: &[u8; LENGTH - 16]) -> Self {
        let [v0, v1, o0, o1, _, _, _, _, nonce @ ..] = *rest;
        Self {
            version: u16::from_le_bytes([v0, v1]),
            oldest: u16::from_le_bytes([o0, o1]),
            nonce: u64::from_le_bytes(nonce),
        }
    }
}

/// Looks for a hello. Answers how many bytes can be thrown away, and the hello that ended with the last of those.
#[must_use]
pub fn find(bytes: &[u8]) -> (usize, Option<Hello>) {
    let mut at = 0;
    while at < bytes.len() {
        let here = &bytes[at..];
        let known = here.len().min(MAGIC.len());
        if here[..known] != MAGIC[..known] {
            at += 1;
            continue;
        }
        // It is one, or may become one.
        return match here.get(16..LENGTH).and_then(|rest| rest.try_into().ok()) {
            Some(rest) => (at + LENGTH, Some(Hello::decode(rest))),
            None => (at, None),
        };
    }
    (at, None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_agreed_on_or_not() {
        let hello = |version, oldest| Hello { version, oldest, nonce: 7 };
        assert_eq!(hello(9, 1).answer(), (hello(VERSION, OLDEST), true));
        assert_eq!(hello(9, 8).answer(), (hello(VERSION, OLDEST), false));
        assert_eq!(hello(0, 0).answer(), (hello(VERSION, OLDEST), false));
    }

    proptest! {
        #[test]
        fn a_hello_is_found_after_anything_however_it_arrives(
            junk in prop::collection::vec(prop_oneof![Just(0xd0), Just(0), any::<u8>()], 0..200),
            begun in 0_usize..LENGTH,
            nonce: u64,
            piece in 1_usize..50,
        ) {
            let hello = Hello::ours(nonce);
            let mut stream = junk;
            // An earlier hello that was cut off.
            stream.extend(&hello.encode()[..begun]);
            stream.extend([0; LENGTH]);
            stream.extend(hello.encode());
            stream.push(1);
            let (mut kept, mut found) = (Vec::new(), None);
            for bytes in stream.chunks(piece) {
                kept.extend_from_slice(bytes);
                loop {
                    let (used, hello) = find(&kept);
                    kept.drain(..used);
                    prop_assert!(hello.is_some() || kept.len() < LENGTH);
                    let Some(hello) = hello else { break };
                    found = Some(hello);
                    if hello.nonce == nonce { break }
                }
            }
            prop_assert_eq!(found, Some(hello));
        }
    }
}
