//! The order of versions.

use std::cmp::Ordering;

/// Compares as dpkg does (deb-version(7), "Sorting algorithm"): parts without digits by their letters, of which `~`
/// comes before the end and letters before other signs, and parts of digits by their number.
pub(super) fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while !one.is_empty() || !other.is_empty() {
        let (words, digits) = (split(&mut one, false), split(&mut one, true));
        let (other_words, other_digits) = (split(&mut other, false), split(&mut other, true));
        let order = compare_words(words, other_words).then_with(|| compare_numbers(digits, other_digits));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the leading digits, or what is before the first.
fn split<'a>(text: &mut &'a [u8], digits: bool) -> &'a [u8] {
    let end = text.iter().position(|byte| byte.is_ascii_digit() != digits).unwrap_or(text.len());
    let (part, rest) = text.split_at(end);
    *text = rest;
    part
}

fn compare_words(one: &[u8], other: &[u8]) -> Ordering {
    let weight = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(sign) => i32::from(*sign) + 256,
    };
    (0..one.len().max(other.len()))
        .map(|at| weight(one.get(at)).cmp(&weight(other.get(at))))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Numbers may have any length.
fn compare_numbers(one: &[u8], other: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().copied().skip_while(|digit| *digit == b'0').collect::<Vec<_>>();
    let (one, other) = (significant(one), significant(other));
    one.len().cmp(&other.len()).then_with(|| one.cmp(&other))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn newer_kernels_come_later() {
        let rising = [
            "5.10.0-9-amd64",
            "5.10.0-28-amd64",
            "6.1.0~rc1-amd64",
            "6.1.0-amd64",
            "6.9.7+bpo-amd64",
            "6.12.48+deb13-amd64",
            "6.12.48+deb13-cloud-amd64",
            "6.12.48+deb13.1-amd64",
            "6.12.117+deb13-amd64",
            "6.100",
        ];
        for pair in rising.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
        assert_eq!(compare("1", "99999999999999999999999999"), Ordering::Less);
    }

    proptest! {
        #[test]
        fn it_is_an_order(one in "[0-9a.~+-]{0,8}", two in "[0-9a.~+-]{0,8}", three in "[0-9a.~+-]{0,8}") {
            prop_assert_eq!(compare(&one, &two), compare(&two, &one).reverse());
            prop_assert_eq!(compare(&one, &one), Ordering::Equal);
            if compare(&one, &two).is_le() && compare(&two, &three).is_le() {
                prop_assert!(compare(&one, &three).is_le());
            }
        }
    }
}
