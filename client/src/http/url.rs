//! Request targets: path segments and query values, escaped.

use std::fmt::{self, Write as _};

/// A path below `/` with its query. Each segment is escaped by itself, so that a name may hold a slash (image aliases
/// such as `debian/13` do).
///
/// ```
/// # use duet_client::Url;
/// let url = Url::new(&["1.0", "images", "aliases", "debian/13"]).query("recursion", "1");
/// assert_eq!(url.to_string(), "/1.0/images/aliases/debian%2F13?recursion=1");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    has_query: bool,
}

impl Url {
    /// A path from its segments.
    pub fn new(segments: &[&str]) -> Self {
        let mut text = String::with_capacity(64);
        for segment in segments {
            text.push('/');
            escape(&mut text, segment);
        }
        Self { text, has_query: false }
    }

    /// A target as it stands, such as one that an answer contained or a user typed.
    pub fn raw(text: &str) -> Self {
        Self { text: text.to_owned(), has_query: text.contains('?') }
    }

    /// Adds a query value.
    #[must_use]
    pub fn query(mut self, key: &str, value: &str) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        escape(&mut self.text, key);
        self.text.push('=');
        escape(&mut self.text, value);
        self
    }

    /// The target as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Escapes everything but RFC 3986's unreserved characters.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// `key=value` pairs as a header or a form holds them.
pub(super) fn form<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        escape(&mut out, key);
        out.push('=');
        escape(&mut out, value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_queries_are_escaped() {
        let url = Url::new(&["1.0", "instances", "c1", "files"]).query("path", "/tmp/a b&c");
        assert_eq!(url.as_str(), "/1.0/instances/c1/files?path=%2Ftmp%2Fa%20b%26c");
        assert_eq!(Url::raw("/1.0/images?x=1").query("y", "é").as_str(), "/1.0/images?x=1&y=%C3%A9");
    }

    #[test]
    fn forms() {
        assert_eq!(form([("alias", "debian/13"), ("alias", "x")]), "alias=debian%2F13&alias=x");
    }
}
