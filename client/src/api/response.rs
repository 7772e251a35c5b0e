//! The envelope around every JSON answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::StatusCode;

/// What kind of answer an envelope holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ResponseType {
    /// The work is done; `metadata` is its result.
    #[default]
    Sync,
    /// The work goes on; `operation` is its address and `metadata` the operation as it began.
    Async,
    /// It was refused; `error` says why and `error_code` repeats the HTTP status.
    Error,
}

/// The envelope as it stands on the wire. For an error, `status` is empty and `status_code` is 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Response {
    /// Which of the three kinds this is.
    #[serde(rename = "type")]
    pub kind: ResponseType,
    /// The status in words: "Success", "Operation created" or empty.
    pub status: String,
    /// The same as a number: 200, 100 or 0.
    pub status_code: u16,
    /// `/1.0/operations/<id>` of an async answer, else empty.
    pub operation: String,
    /// The HTTP status of an error, else 0.
    pub error_code: u16,
    /// The error's sentence, else empty.
    pub error: String,
    /// The result.
    pub metadata: Value,
}

impl Response {
    /// A finished request with its result. Use `Value::Object(Map::new())` (`{}`) where there is nothing to say:
    /// Incus answers `{}` to an update and `null` to a creation.
    pub fn sync(metadata: Value) -> Self {
        Self {
            kind: ResponseType::Sync,
            status: StatusCode::Success.text().into(),
            status_code: StatusCode::Success.code(),
            metadata,
            ..Self::default()
        }
    }

    /// A request that goes on as the operation `operation` (its full path).
    pub fn background(operation: String, metadata: Value) -> Self {
        Self {
            kind: ResponseType::Async,
            status: StatusCode::OperationCreated.text().into(),
            status_code: StatusCode::OperationCreated.code(),
            operation,
            metadata,
            ..Self::default()
        }
    }

    /// A refusal with the HTTP status that it is sent with.
    pub fn error(code: u16, message: String) -> Self {
        Self { kind: ResponseType::Error, error_code: code, error: message, ..Self::default() }
    }
}
