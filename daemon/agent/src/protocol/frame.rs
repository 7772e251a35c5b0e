//! Frames: eight bytes of header, then the payload.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 to 3 | channel, little-endian |
//! | 4 | kind |
//! | 5 to 7 | the payload's length in bytes, little-endian |

use super::{MAX_DATA, MAX_MESSAGE, STDERR, Violation};

/// How long a header is, in bytes.
pub const HEADER: usize = 8;
/// The longest frame, in bytes.
pub const MAX_FRAME: usize = HEADER + MAX_MESSAGE;

/// What a frame says about its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The host opens it; a [`super::message::Request`] in JSON.
    Open(&'a [u8]),
    /// A [`super::message::Control`] from the host, a [`super::message::Reply`] from the guest, in JSON.
    Message(&'a [u8]),
    /// Bytes of a stream, at most [`MAX_DATA`] and at least one.
    Data(u8, &'a [u8]),
    /// There is room for so many more bytes of a stream that the other side sends.
    Credit(u8, u32),
    /// No more bytes of this stream will come.
    End(u8),
    /// No more bytes of this stream, which the other side sends, are wanted.
    Stop(u8),
    /// The channel is over. From the host: nobody listens any more. From the guest: all was said.
    Close,
}

const OPEN: u8 = 1;
const MESSAGE: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const END: u8 = 5;
const STOP: u8 = 6;
const CLOSE: u8 = 7;

/// Appends a frame. Its payload must be within bounds, which those who make them see to.
pub fn encode(channel: u32, frame: Frame<'_>, out: &mut Vec<u8>) {
    let mut put = |kind: u8, parts: [&[u8]; 2]| {
        let length = parts[0].len() + parts[1].len();
        debug_assert!(length <= MAX_MESSAGE);
        out.extend_from_slice(&header(channel, kind, length));
        parts.iter().for_each(|part| out.extend_from_slice(part));
    };
    match frame {
        Frame::Open(request) => put(OPEN, [request, &[]]),
        Frame::Message(message) => put(MESSAGE, [message, &[]]),
        Frame::Data(stream, bytes) => put(DATA, [&[stream], bytes]),
        Frame::Credit(stream, bytes) => put(CREDIT, [&[stream], &bytes.to_le_bytes()]),
        Frame::End(stream) => put(END, [&[stream], &[]]),
        Frame::Stop(stream) => put(STOP, [&[stream], &[]]),
        Frame::Close => put(CLOSE, [&[], &[]]),
    }
}

/// The header of a data frame with so many bytes of a stream, and the stream: what comes before the bytes themselves.
#[must_use]
pub fn data_header(channel: u32, stream: u8, bytes: usize) -> [u8; HEADER + 1] {
    let mut out = [stream; HEADER + 1];
    out[..HEADER].copy_from_slice(&header(channel, DATA, bytes + 1));
    out
}

fn header(channel: u32, kind: u8, length: usize) -> [u8; HEADER] {
    let [c0, c1, c2, c3] = channel.to_le_bytes();
    // Payloads are below MAX_MESSAGE, which three bytes hold.
    let [l0, l1, l2, ..] = length.to_le_bytes();
    [c0, c1, c2, c3, kind, l0, l1, l2]
}

/// A frame, the channel it belongs to, and how many bytes it takes.
pub type Decoded<'a> = (usize, u32, Frame<'a>);

/// Reads the frame that the bytes begin with; `None` if there is more of it to come.
///
/// # Errors
/// [`Violation`], as soon as the header shows it: nothing is ever waited for that would not be taken.
pub fn decode(bytes: &[u8]) -> Result<Option<Decoded<'_>>, Violation> {
    let Some(&[c0, c1, c2, c3, kind, l0, l1, l2]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_le_bytes([l0, l1, l2, 0]) as usize;
    let fits = match kind {
        OPEN | MESSAGE => (2..=MAX_MESSAGE).contains(&length),
        DATA => (2..=MAX_DATA + 1).contains(&length),
        CREDIT => length == 5,
        END | STOP => length == 1,
        CLOSE => length == 0,
        unknown => return Err(Violation::Kind(unknown)),
    };
    if !fits {
        return Err(Violation::Length { kind, length });
    }
    let Some(payload) = bytes.get(HEADER..HEADER + length) else { return Ok(None) };
    let channel = u32::from_le_bytes([c0, c1, c2, c3]);
    let frame = match (kind, payload) {
        (OPEN, request) => Frame::Open(request),
        (MESSAGE, message) => Frame::Message(message),
        (DATA, [stream, bytes @ ..]) => Frame::Data(known(*stream)?, bytes),
        (CREDIT, &[stream, b0, b1, b2, b3]) => Frame::Credit(known(stream)?, u32::from_le_bytes([b0, b1, b2, b3])),
        (END, [stream]) => Frame::End(known(*stream)?),
        (STOP, [stream]) => Frame::Stop(known(*stream)?),
        (CLOSE, _) => Frame::Close,
        _ => return Err(Violation::Length { kind, length }),
    };
    Ok(Some((HEADER + length, channel, frame)))
}

fn known(stream: u8) -> Result<u8, Violation> {
    if stream <= STDERR { Ok(stream) } else { Err(Violation::Stream(stream)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_survives() {
        let bytes = vec![7; MAX_DATA];
        for frame in [
            Frame::Open(b"{}"),
            Frame::Message(b"{}"),
            Frame::Data(1, &bytes),
            Frame::Credit(2, u32::MAX),
            Frame::End(0),
            Frame::Stop(1),
            Frame::Close,
        ] {
            let mut out = Vec::new();
            encode(0xdead_beef, frame, &mut out);
            assert_eq!(decode(&out), Ok(Some((out.len(), 0xdead_beef, frame))));
            assert_eq!(decode(&out[..out.len() - 1]), Ok(None));
        }
        let mut out = data_header(9, 1, 3).to_vec();
        out.extend(b"abc");
        assert_eq!(decode(&out), Ok(Some((12, 9, Frame::Data(1, b"abc")))));
    }

    #[test]
    fn what_no_one_sends_is_refused_by_its_header() {
        assert_eq!(decode(&[0; HEADER]), Err(Violation::Kind(0)));
        let refused = |kind, length| {
            assert_eq!(decode(&header(1, kind, length)), Err(Violation::Length { kind, length }));
        };
        refused(OPEN, MAX_MESSAGE + 1);
        refused(MESSAGE, 0xff_ffff);
        refused(DATA, MAX_DATA + 2);
        refused(DATA, 1);
        refused(CREDIT, 4);
        refused(END, 0);
        refused(CLOSE, 1);
        assert_eq!(decode(&[0, 0, 0, 0, END, 1, 0, 0, 3]), Err(Violation::Stream(3)));
    }

    proptest! {
        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((used, ..))) = decode(&bytes) {
                prop_assert!(used >= HEADER && used <= bytes.len());
            }
        }
    }
}
