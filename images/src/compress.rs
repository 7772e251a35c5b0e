//! Compression of what is packed.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use crate::format::Compression;

/// How to compress a tarball, with its effort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compress {
    /// Not at all.
    None,
    /// gzip, level 1 to 9.
    Gzip(u32),
    /// xz, level 0 to 9, on all processors.
    Xz(u32),
    /// Zstandard, level 1 to 19, on all processors.
    Zstd(i32),
}

impl Default for Compress {
    /// Zstandard at level 9: for a Debian root about a tenth larger than xz, in a twentieth of the time.
    fn default() -> Self {
        Compress::Zstd(9)
    }
}

impl Compress {
    /// The format this makes.
    pub fn format(self) -> Compression {
        match self {
            Compress::None => Compression::None,
            Compress::Gzip(_) => Compression::Gzip,
            Compress::Xz(_) => Compression::Xz,
            Compress::Zstd(_) => Compression::Zstd,
        }
    }
}

/// A compression that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression; use none, gzip, xz or zstd, with a level if you like: \"zstd -9\"")]
pub struct UnknownCompression(String);

/// As in Incus' `compression_algorithm`: a name, perhaps with a level as the command line tools take it ("xz -6").
impl FromStr for Compress {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownCompression(text.to_owned());
        let mut words = text.split_whitespace();
        let name = words.next().ok_or_else(unknown)?;
        let level: Option<u32> = words
            .next()
            .map(|word| word.strip_prefix('-').and_then(|digits| digits.parse().ok()).ok_or_else(unknown))
            .transpose()?;
        if words.next().is_some() {
            return Err(unknown());
        }
        let within = |most: u32, usual: u32| match level {
            Some(level) if level <= most => Ok(level),
            Some(_) => Err(unknown()),
            None => Ok(usual),
        };
        Ok(match name {
            "none" if level.is_none() => Compress::None,
            "gzip" | "pigz" => Compress::Gzip(within(9, 6)?),
            "xz" => Compress::Xz(within(9, 6)?),
            "zstd" => Compress::Zstd(within(19, 9)?.cast_signed()),
            _ => return Err(unknown()),
        })
    }
}

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compress::None => f.write_str("none"),
            Compress::Gzip(level) => write!(f, "gzip -{level}"),
            Compress::Xz(level) => write!(f, "xz -{level}"),
            Compress::Zstd(level) => write!(f, "zstd -{level}"),
        }
    }
}

/// A writer that compresses into another.
pub(crate) enum Compressor<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Xz(liblzma::write::XzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    pub(crate) fn new(out: W, compress: Compress) -> io::Result<Compressor<W>> {
        let threads = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        Ok(match compress {
            Compress::None => Compressor::None(out),
            Compress::Gzip(level) => {
                Compressor::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::new(level)))
            }
            Compress::Xz(level) => {
                let stream = liblzma::stream::MtStreamBuilder::new()
                    .preset(level)
                    .threads(threads)
                    .check(liblzma::stream::Check::Crc64)
                    .encoder()
                    .map_err(io::Error::from)?;
                Compressor::Xz(liblzma::write::XzEncoder::new_stream(out, stream))
            }
            Compress::Zstd(level) => {
                let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
                // Even one worker thread lets reading and compressing overlap; the bytes do not depend on their number.
                encoder.multithread(threads)?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(encoder)
            }
        })
    }

    /// Writes the end and gives the output back.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Compressor::None(out) => Ok(out),
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Xz(encoder) => encoder.finish(),
            Compressor::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::None(out) => out.write(bytes),
            Compressor::Gzip(encoder) => encoder.write(bytes),
            Compressor::Xz(encoder) => encoder.write(bytes),
            Compressor::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::None(out) => out.flush(),
            Compressor::Gzip(encoder) => encoder.flush(),
            Compressor::Xz(encoder) => encoder.flush(),
            Compressor::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, compress) in [
            ("none", Compress::None),
            ("gzip", Compress::Gzip(6)),
            ("xz -9", Compress::Xz(9)),
            ("zstd -19", Compress::Zstd(19)),
        ] {
            assert_eq!(text.parse(), Ok(compress));
            assert_eq!(compress.to_string().parse(), Ok(compress));
        }
        for text in ["", "bzip2", "gzip -10", "xz 9", "none -1", "zstd -1 -2"] {
            assert!(text.parse::<Compress>().unwrap_err().to_string().contains("zstd"), "{text}");
        }
    }
}
