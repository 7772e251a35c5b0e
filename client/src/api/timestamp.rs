//! Points in time as Go prints them.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time: RFC 3339 in UTC with a trailing `Z` and as many digits of the nanoseconds as are not zero,
/// which is what Go's `time.RFC3339Nano` gives.
///
/// Go's zero time, `0001-01-01T00:00:00Z`, stands for "never" and is the default. Some fields use the Unix epoch for
/// the same thing; [`Timestamp::is_set`] knows both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub jiff::Timestamp);

impl Timestamp {
    /// Go's zero time, 0001-01-01T00:00:00Z: never, or unknown.
    pub const ZERO: Self = Self(jiff::Timestamp::constant(-62_135_596_800, 0));

    /// The Unix epoch, which some fields use for "never".
    pub const EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// The present moment.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// True when this names a moment and not "never".
    pub fn is_set(self) -> bool {
        self.0 > jiff::Timestamp::UNIX_EPOCH
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Self::ZERO
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(value: jiff::Timestamp) -> Self {
        Self(value)
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::DateTime)))
            .description(Some("A point in time. `0001-01-01T00:00:00Z`, and in some fields the Unix epoch, is never."))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Timestamp {}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| D::Error::custom(format!("{text:?} is not a time; expected one like 2026-01-31T12:00:00Z")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        for text in [
            "0001-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
            "2026-11-23T17:17:19.82334785Z",
            "2026-11-23T17:17:19.349075131Z",
            "2025-10-09T08:53:20Z",
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        }
        assert_eq!("2026-01-01T01:00:00+01:00".parse::<Timestamp>().unwrap().to_string(), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn never_is_recognised() {
        assert!(!Timestamp::default().is_set());
        assert!(!Timestamp::EPOCH.is_set());
        assert!(Timestamp::now().is_set());
        assert_eq!(Timestamp::ZERO.to_string(), "0001-01-01T00:00:00Z");
    }
}
