//! Paths and names on the wire.
//!
//! A Linux path is bytes, JSON is Unicode. What is valid UTF-8 stays readable; every other byte, and `%` itself, becomes
//! `%XX`. That is lossless in both directions and leaves ordinary names as they are.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path or name as bytes, carried in JSON as described in the module's documentation.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WirePath(Vec<u8>);

impl WirePath {
    /// The bytes themselves.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// As an owned string of the operating system.
    #[must_use]
    pub fn into_os_string(self) -> OsString {
        OsString::from_vec(self.0)
    }

    /// For the kernel; `None` when it holds a zero byte.
    #[must_use]
    pub fn to_c_string(&self) -> Option<CString> {
        CString::new(self.0.as_slice()).ok()
    }

    fn encode(&self) -> String {
        let mut out = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character == '%' {
                    out.push_str("%25");
                } else {
                    out.push(character);
                }
            }
            for byte in chunk.invalid() {
                out.push('%');
                out.push(char::from(b"0123456789ABCDEF"[usize::from(byte >> 4)]));
                out.push(char::from(b"0123456789ABCDEF"[usize::from(byte & 15)]));
            }
        }
        out
    }

    fn decode(text: &str) -> Option<Self> {
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            if *first == b'%' {
                let (high, low) = (after.first()?, after.get(1)?);
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                out.push((digit(high)? << 4 | digit(low)?) as u8);
                rest = &after[2..];
            } else {
                out.push(*first);
                rest = after;
            }
        }
        Some(Self(out))
    }
}

impl<T: AsRef<OsStr> + ?Sized> From<&T> for WirePath {
    fn from(path: &T) -> Self {
        Self(path.as_ref().as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for WirePath {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for WirePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.as_path())
    }
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::decode(&text).ok_or_else(|| D::Error::custom("a percent sign that begins no %XX"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::WirePath;

    #[test]
    fn ordinary_names_stay_readable() {
        for (bytes, wire) in [
            (&b"/etc/hosts"[..], "\"/etc/hosts\""),
            ("/tmp/gr\u{fc}n".as_bytes(), "\"/tmp/gr\u{fc}n\""),
            (b"100%", "\"100%25\""),
            (b"a\xffb\xc3", "\"a%FFb%C3\""),
        ] {
            let path = WirePath::from(bytes.to_vec());
            assert_eq!(serde_json::to_string(&path).unwrap(), wire);
            assert_eq!(serde_json::from_str::<WirePath>(wire).unwrap(), path);
        }
        for bad in ["\"%\"", "\"%2\"", "\"%zz\"", "3"] {
            assert!(serde_json::from_str::<WirePath>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_string_survives(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let path = WirePath::from(bytes);
            let wire = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<WirePath>(&wire).unwrap(), path);
        }
    }
}
