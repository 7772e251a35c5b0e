//! The numbers that `status_code` holds.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! codes {
    ($($(#[$meta:meta])* $name:ident = $code:literal, $text:literal;)+) => {
        /// A status of an instance, an operation or an answer; on the wire a number, with its text beside it.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum StatusCode { $($(#[$meta])* $name = $code,)+ }

        impl StatusCode {
            /// Every code, in ascending order.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The text that goes with the code, as in `status`.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// The code of this number, if there is one.
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

codes! {
    /// An operation was created (the status of an async answer).
    OperationCreated = 100, "Operation created";
    /// Started.
    Started = 101, "Started";
    /// An instance that is not running.
    Stopped = 102, "Stopped";
    /// An instance or an operation that is running.
    Running = 103, "Running";
    /// An operation that is being cancelled.
    Cancelling = 104, "Cancelling";
    /// An operation that has not started yet.
    Pending = 105, "Pending";
    /// An instance on its way up.
    Starting = 106, "Starting";
    /// An instance on its way down.
    Stopping = 107, "Stopping";
    /// An instance whose start is being given up.
    Aborting = 108, "Aborting";
    /// An instance that is being paused.
    Freezing = 109, "Freezing";
    /// A paused instance.
    Frozen = 110, "Frozen";
    /// An instance that was resumed.
    Thawed = 111, "Thawed";
    /// An instance in trouble.
    Error = 112, "Error";
    /// An instance whose guest reported that it is ready.
    Ready = 113, "Ready";
    /// Done.
    #[default]
    Success = 200, "Success";
    /// An operation that failed.
    Failure = 400, "Failure";
    /// An operation that was cancelled.
    Cancelled = 401, "Cancelled";
}

impl StatusCode {
    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// True for the codes an operation ends with.
    pub const fn is_final(self) -> bool {
        self.code() >= 200
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for StatusCode {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let texts: Vec<_> = Self::ALL.iter().map(|code| format!("{}: {}", code.code(), code.text())).collect();
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::Integer)
            .description(Some(format!("A status of an instance, an operation or an answer. {}.", texts.join(", "))))
            .enum_values(Some(Self::ALL.iter().map(|code| code.code())))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for StatusCode {}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for StatusCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.code())
    }
}

impl<'de> Deserialize<'de> for StatusCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = u16::deserialize(deserializer)?;
        Self::from_code(code).ok_or_else(|| D::Error::custom(format!("{code} is not a known status code")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in StatusCode::ALL {
            let text = serde_json::to_string(code).unwrap();
            assert_eq!(text, code.code().to_string());
            assert_eq!(serde_json::from_str::<StatusCode>(&text).unwrap(), *code);
        }
        assert!(serde_json::from_str::<StatusCode>("999").is_err());
    }
}
