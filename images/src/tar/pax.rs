//! PAX extended header records: `"<length> <key>=<value>\n"`, where the value may hold any byte, newlines included.

use crate::entry::Timestamp;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// Takes an extended header's data apart.
///
/// # Errors
/// What is wrong with it, as part of a sentence.
pub(super) fn parse(mut data: &[u8]) -> Result<Vec<Record>, &'static str> {
    let mut records = Vec::new();
    // Some writers pad with NULs inside the stated size.
    while data.first().is_some_and(|b| *b != 0) {
        let space = data.iter().take(21).position(|b| *b == b' ').ok_or("a record has no length")?;
        let length = decimal(&data[..space]).ok_or("a record's length is not a number")?;
        let length = usize::try_from(length).map_err(|_| "a record's length is too large")?;
        if length <= space + 1 || length > data.len() {
            return Err("a record's length does not fit");
        }
        let record = &data[space + 1..length];
        let Some((b'\n', body)) = record.split_last() else { return Err("a record has no end") };
        let equals = body.iter().position(|b| *b == b'=').ok_or("a record has no value")?;
        if equals == 0 {
            return Err("a record has no key");
        }
        records.push(Record { key: body[..equals].to_vec(), value: body[equals + 1..].to_vec() });
        data = &data[length..];
    }
    Ok(records)
}

/// Appends one record to an extended header's data.
pub(super) fn append(data: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if digits(length) != digits(rest) {
        length = rest + digits(length);
    }
    data.extend_from_slice(length.to_string().as_bytes());
    data.push(b' ');
    data.extend_from_slice(key);
    data.push(b'=');
    data.extend_from_slice(value);
    data.push(b'\n');
}

fn digits(n: usize) -> usize {
    n.to_string().len()
}

/// An unsigned decimal number and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time: decimal seconds, perhaps negative, perhaps with a fraction.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, b| n * 10 + u32::from(b - b'0'));
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds: 0 },
        (true, n) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - n },
    })
}

/// The text of a time, as short as it can be.
pub(super) fn time_text(time: Timestamp) -> String {
    match (time.seconds, time.nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds, n) if seconds >= 0 => format!("{seconds}.{n:09}"),
        (seconds, n) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - n),
    }
}

/// Undoes the percent-encoding of attribute names in `LIBARCHIVE.xattr.` keys.
pub(super) fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    Some(out)
}

/// Decodes base64 as libarchive writes attribute values: the standard alphabet, padding optional.
pub(super) fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0u8);
    for byte in text {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' | b'\n' | b'\r' => continue,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8); // the top bits were pushed before
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_may_hold_newlines() {
        let mut data = Vec::new();
        append(&mut data, b"SCHILY.xattr.user.a", b"x\n12 y=z\n\0");
        append(&mut data, b"path", b"b");
        let records = parse(&data).unwrap();
        assert_eq!(records[0].value, b"x\n12 y=z\n\0");
        assert_eq!((records[1].key.as_slice(), records[1].value.as_slice()), (&b"path"[..], &b"b"[..]));
    }

    #[test]
    fn broken_records_are_refused() {
        for data in [
            &b"x path=a\n"[..],
            b"8 path=a\n",
            b"99 path=a\n",
            b"10 path=a",
            b"3 \n",
            b"5 =a\n",
            b"99999999999999999999999 a=b\n",
        ] {
            assert!(parse(data).is_err(), "{:?}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn times() {
        for (text, seconds, nanoseconds) in [
            ("5", 5, 0),
            ("5.25", 5, 250_000_000),
            ("-1.25", -2, 750_000_000),
            ("-3", -3, 0),
            ("1.1234567899", 1, 123_456_789),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Timestamp { seconds, nanoseconds }), "{text}");
        }
        for text in ["", "x", "1.x", "--1", "1e5"] {
            assert_eq!(time(text.as_bytes()), None);
        }
    }

    #[test]
    fn libarchive_encodings() {
        assert_eq!(percent_decode(b"user.a%20b%3d").unwrap(), b"user.a b=");
        assert!(percent_decode(b"%2").is_none() && percent_decode(b"%zz").is_none());
        assert_eq!(base64_decode(b"AQAAAgAgAAA").unwrap(), [1, 0, 0, 2, 0, 32, 0, 0]);
        assert_eq!(base64_decode(b"aGVsbG8=").unwrap(), b"hello");
        assert!(base64_decode(b"a*").is_none());
    }

    proptest! {
        #[test]
        fn append_then_parse(key in "[a-zA-Z.]{1,120}", value in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut data = Vec::new();
            append(&mut data, key.as_bytes(), &value);
            prop_assert_eq!(parse(&data).unwrap(), vec![Record { key: key.into_bytes(), value }]);
        }

        #[test]
        fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&data);
        }

        #[test]
        fn times_survive(seconds in -10_000_000_000i64..10_000_000_000, nanoseconds in 0u32..1_000_000_000) {
            let stamp = Timestamp { seconds, nanoseconds };
            prop_assert_eq!(time(time_text(stamp).as_bytes()), Some(stamp));
        }
    }
}
