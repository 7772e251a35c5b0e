//! Files inside instances.

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Incoming;

use super::{Body, Client, Error, Url, empty_body};
use crate::api::{
    self, FileKind, HEADER_FORCE, HEADER_GID, HEADER_MODE, HEADER_MODIFIED, HEADER_TYPE, HEADER_UID, HEADER_WRITE,
};

/// Who owns a file inside the instance and what may be done with it. On upload, `None` leaves the choice to the
/// daemon: owner 0, mode 0644 (0755 for directories), and an existing file keeps what it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileOwner {
    /// The user id.
    pub uid: Option<u32>,
    /// The group id.
    pub gid: Option<u32>,
    /// The permission bits.
    pub mode: Option<u32>,
}

/// What a path holds.
#[derive(Debug)]
pub enum FileContent {
    /// A file's bytes, still to be read.
    File(Incoming),
    /// A directory's names.
    Directory(Vec<String>),
    /// A symlink's target.
    Symlink(String),
}

/// Something at a path inside an instance.
#[derive(Debug)]
pub struct RemoteFile {
    /// Its owner and mode.
    pub owner: FileOwner,
    /// When it was last changed, as the daemon prints it; empty if it does not say.
    pub modified: String,
    /// Its size in bytes, for a file.
    pub size: Option<u64>,
    /// What it is and holds.
    pub content: FileContent,
}

impl RemoteFile {
    /// A file's bytes as a stream.
    pub fn stream(body: Incoming) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
        BodyDataStream::new(body).map_err(std::io::Error::other)
    }
}

fn files_url(instance: &str, path: &str) -> Url {
    Url::new(&["1.0", "instances", instance, "files"]).query("path", path)
}

impl Client {
    /// Opens what is at `path` (from the instance's root).
    pub async fn file_get(&self, instance: &str, path: &str) -> Result<RemoteFile, Error> {
        let url = files_url(instance, path);
        let response = self.open(Method::GET, &url, HeaderMap::new(), empty_body()).await?;
        let (parts, body) = response.into_parts();
        let garbled = |detail: String| Error::Garbled { request: format!("GET {url}"), detail };
        let read = |source| Error::Broken { request: format!("GET {url}"), source };
        let kind = file_kind(&parts.headers).map_err(garbled)?;
        let content = match kind {
            FileKind::File => FileContent::File(body),
            FileKind::Symlink => {
                let bytes = body.collect().await.map_err(read)?.to_bytes();
                FileContent::Symlink(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
            }
            FileKind::Directory => {
                let bytes = body.collect().await.map_err(read)?.to_bytes();
                let envelope: api::Response =
                    serde_json::from_slice(&bytes).map_err(|error| garbled(error.to_string()))?;
                let names: Option<Vec<String>> =
                    serde_json::from_value(envelope.metadata).map_err(|error| garbled(error.to_string()))?;
                FileContent::Directory(names.unwrap_or_default())
            }
        };
        Ok(RemoteFile {
            owner: owner_of(&parts.headers),
            modified: text(&parts.headers, HEADER_MODIFIED).unwrap_or_default().to_owned(),
            size: text(&parts.headers, "content-length").and_then(|value| value.parse().ok()),
            content,
        })
    }

    /// Looks at what is at `path` without reading it.
    pub async fn file_stat(&self, instance: &str, path: &str) -> Result<(FileKind, FileOwner, Option<u64>), Error> {
        let url = files_url(instance, path);
        let response = self.open(Method::HEAD, &url, HeaderMap::new(), empty_body()).await?;
        let headers = response.headers();
        let kind = file_kind(headers).map_err(|detail| Error::Garbled { request: format!("HEAD {url}"), detail })?;
        let size = text(headers, "content-length").and_then(|value| value.parse().ok());
        Ok((kind, owner_of(headers), size))
    }

    /// Writes a file, makes a directory, or makes a symlink (whose target is the body).
    pub async fn file_put(
        &self,
        instance: &str,
        path: &str,
        kind: FileKind,
        owner: FileOwner,
        append: bool,
        body: Body,
    ) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        let mut set = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set(HEADER_TYPE, kind.name().to_owned());
        if let Some(uid) = owner.uid {
            set(HEADER_UID, uid.to_string());
        }
        if let Some(gid) = owner.gid {
            set(HEADER_GID, gid.to_string());
        }
        if let Some(mode) = owner.mode {
            set(HEADER_MODE, format!("{:04o}", mode & 0o7777));
        }
        if append {
            set(HEADER_WRITE, "append".to_owned());
        }
        set("content-type", "application/octet-stream".to_owned());
        self.upload(Method::POST, &files_url(instance, path), headers, body).await?;
        Ok(())
    }

    /// Deletes a file or an empty directory; with `force`, a directory with all that is in it.
    pub async fn file_delete(&self, instance: &str, path: &str, force: bool) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        if force {
            headers.insert(HEADER_FORCE, HeaderValue::from_static("true"));
        }
        self.upload(Method::DELETE, &files_url(instance, path), headers, empty_body()).await?;
        Ok(())
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn file_kind(headers: &HeaderMap) -> Result<FileKind, String> {
    text(headers, HEADER_TYPE).unwrap_or("file").parse().map_err(|error: api::UnknownFileKind| error.to_string())
}

fn owner_of(headers: &HeaderMap) -> FileOwner {
    FileOwner {
        uid: text(headers, HEADER_UID).and_then(|value| value.parse().ok()),
        gid: text(headers, HEADER_GID).and_then(|value| value.parse().ok()),
        mode: text(headers, HEADER_MODE).and_then(|value| u32::from_str_radix(value, 8).ok()),
    }
}
