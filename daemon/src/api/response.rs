//! The response envelope of the API, its entity tags, and the one place that maps failures to HTTP statuses.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind};
use crate::operations::Operation;

/// The largest JSON body that is read, in bytes.
const LARGEST_BODY: usize = 4 << 20;

/// What a handler gives.
pub type Answer = Result<Response, Error>;

/// A finished answer with `metadata`.
pub fn sync(metadata: impl Serialize) -> Response {
    match serde_json::to_string(&metadata) {
        Ok(metadata) => sync_written(&metadata),
        Err(error) => Error::internal(error).into_response(),
    }
}

/// The same of what is JSON already. It is not looked into: it may be megabytes.
pub fn sync_written(metadata: &str) -> Response {
    const BEGIN: &str = concat!(
        r#"{"type":"sync","status":"Success","status_code":200,"#,
        r#""operation":"","error_code":0,"error":"","metadata":"#
    );
    ([(header::CONTENT_TYPE, "application/json")], [BEGIN, metadata, "}"].concat()).into_response()
}

/// A finished answer with nothing to say.
pub fn empty() -> Response {
    sync(json!({}))
}

/// A finished answer with the tag of what it shows.
pub fn tagged(metadata: impl Serialize, etag: &str) -> Response {
    let mut response = sync(metadata);
    if let Ok(value) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// Something was made at `location`.
pub fn created(location: &str) -> Response {
    let mut response = sync(Value::Null);
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(value) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// Work goes on in the background.
pub fn accepted(operation: &Operation) -> Response {
    let path = operation.path();
    let body = json!({
        "type": "async",
        "status": "Operation created",
        "status_code": 100,
        "operation": path,
        "error_code": 0,
        "error": "",
        "metadata": operation.render(),
    });
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    if let Ok(value) = HeaderValue::from_str(&path) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// The status that a kind of failure has on the wire.
pub fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Closing => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Changed => StatusCode::PRECONDITION_FAILED,
        Kind::Timeout => StatusCode::REQUEST_TIMEOUT,
        Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = status_of(self.kind);
        if self.kind == Kind::Internal {
            tracing::error!(error = %self.message, "a request failed");
        }
        let body = json!({
            "type": "error",
            "status": "",
            "status_code": 0,
            "operation": "",
            "error_code": status.as_u16(),
            "error": self.sentence(),
            "metadata": Value::Null,
        });
        (status, Json(body)).into_response()
    }
}

/// The tag of a value: the SHA-256 of its JSON, quoted (RFC 9110, 8.8.3).
pub fn etag(value: &impl Serialize) -> String {
    let text = serde_json::to_vec(value).unwrap_or_default();
    let digest = Sha256::digest(&text);
    let mut tag = String::with_capacity(66);
    tag.push('"');
    for byte in digest {
        tag.push_str(&format!("{byte:02x}"));
    }
    tag.push('"');
    tag
}

/// The Content-Disposition of a file of this name (RFC 6266). What a header cannot hold of it is replaced.
pub fn disposition(file: &str) -> HeaderValue {
    let plain: String =
        file.chars().map(|c| if c.is_ascii_graphic() && !"\"\\;".contains(c) { c } else { '_' }).collect();
    HeaderValue::from_str(&format!("inline;filename={plain}")).unwrap_or_else(|_| HeaderValue::from_static("inline"))
}

/// Refuses a change that was made against an older state (RFC 9110, 13.1.1). Without the header anything goes.
///
/// # Errors
/// 412 where no tag of the header is `current`.
pub fn if_match(headers: &HeaderMap, current: &str) -> Result<(), Error> {
    let Some(wanted) = headers.get(header::IF_MATCH) else { return Ok(()) };
    // What is no text is no tag of ours either.
    let wanted = String::from_utf8_lossy(wanted.as_bytes());
    let plain = current.trim_matches('"');
    let matches = wanted.split(',').map(|t| t.trim().trim_start_matches("W/").trim_matches('"'));
    if wanted.trim().is_empty() || matches.into_iter().any(|t| t == "*" || t == plain) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Changed,
        format!("ETag doesn't match: {wanted} vs {current}; read the object again and repeat the change"),
    ))
}

/// Refuses a part of a body, and one that is not what it is to become (RFC 9110, 14.5 and 8.4): taken as they are they
/// would become the whole.
///
/// # Errors
/// With the header that says so.
pub fn whole_body(headers: &HeaderMap) -> Result<(), Error> {
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Error::invalid("Content-Range: parts of a body are not taken; send all of it"));
    }
    match headers.get(header::CONTENT_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding == "identity" => Ok(()),
        Some(_) => Err(Error::invalid("Content-Encoding: an encoded body is not taken; send it as it is")),
    }
}

/// Reads a small body whole.
///
/// # Errors
/// Where it is too large or breaks off.
pub async fn body_bytes(body: Body) -> Result<axum::body::Bytes, Error> {
    axum::body::to_bytes(body, LARGEST_BODY).await.map_err(|e| {
        let mut source = std::error::Error::source(&e);
        while let Some(inner) = source {
            if inner.is::<http_body_util::LengthLimitError>() {
                return Error::new(Kind::TooLarge, format!("the body is larger than {} MiB", LARGEST_BODY >> 20));
            }
            source = inner.source();
        }
        Error::invalid(format!("the body could not be read: {e}"))
    })
}

/// Parses a JSON body.
///
/// # Errors
/// 400 with serde's words.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    // RFC 8259, 8.1; serde looks only at the members that it knows.
    let text = std::str::from_utf8(bytes).map_err(|e| Error::invalid(format!("the body is not UTF-8: {e}")))?;
    // Serde takes a list for an object's members in their order.
    if text.trim_ascii_start().starts_with('[') {
        return Err(Error::invalid("the body is a list: a JSON object is expected"));
    }
    serde_json::from_str(text).map_err(|e| Error::invalid(format!("the body is not what is expected here: {e}")))
}
