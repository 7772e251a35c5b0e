//! Image files: import and export, streamed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::BodyDataStream;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::url::form;
use super::{Client, Error, Outcome, Url, empty_body, stream_body};
use crate::api::{HEADER_IMAGE_ALIASES, HEADER_IMAGE_FILENAME, HEADER_IMAGE_PROPERTIES, HEADER_IMAGE_PUBLIC};

/// How much is read from a file at a time.
const CHUNK: usize = 128 * 1024;

/// An image to import.
#[derive(Debug, Clone, Default)]
pub struct ImageUpload {
    /// A unified image, or the metadata tarball of a split one.
    pub metadata: PathBuf,
    /// The root filesystem of a split image.
    pub rootfs: Option<PathBuf>,
    /// Whether it is public.
    pub public: bool,
    /// Properties to add.
    pub properties: Vec<(String, String)>,
    /// Aliases to give it.
    pub aliases: Vec<String>,
}

/// A file that an export wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedPart {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

impl Client {
    /// Imports an image; `sent` counts the bytes as they go. The operation's metadata has the fingerprint.
    pub async fn image_import(&self, upload: &ImageUpload, sent: Arc<AtomicU64>) -> Result<Outcome, Error> {
        let mut headers = HeaderMap::new();
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set(HEADER_IMAGE_FILENAME, &file_name(&upload.metadata));
        if upload.public {
            set(HEADER_IMAGE_PUBLIC, "true");
        }
        if !upload.properties.is_empty() {
            let pairs = upload.properties.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            set(HEADER_IMAGE_PROPERTIES, &form(pairs));
        }
        if !upload.aliases.is_empty() {
            set(HEADER_IMAGE_ALIASES, &form(upload.aliases.iter().map(|alias| ("alias", alias.as_str()))));
        }
        let body = match &upload.rootfs {
            None => {
                set("content-type", "application/octet-stream");
                stream_body(counted(open(&upload.metadata).await?, sent))
            }
            Some(rootfs) => {
                let boundary = format!("duet{:x}{:x}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
                set("content-type", &format!("multipart/form-data; boundary={boundary}"));
                let first = open(&upload.metadata).await?;
                let second = open(rootfs).await?;
                let text = |text: String| stream::iter([io::Result::Ok(Bytes::from(text))]);
                let part = |name: &str, path: &Path| {
                    format!(
                        "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{}\"\r\n\
                         Content-Type: application/octet-stream\r\n\r\n",
                        file_name(path)
                    )
                };
                stream_body(
                    text(part("metadata", &upload.metadata))
                        .chain(counted(first, Arc::clone(&sent)))
                        .chain(text(format!("\r\n{}", part("rootfs", rootfs))))
                        .chain(counted(second, sent))
                        .chain(text(format!("\r\n--{boundary}--\r\n"))),
                )
            }
        };
        self.upload(Method::POST, &Url::new(&["1.0", "images"]), headers, body).await
    }

    /// Writes an image's file or files. `target` may be a directory (the files keep their names in it) or the stem of
    /// the files' names. `received` counts the bytes as they come.
    pub async fn image_export(
        &self,
        fingerprint: &str,
        target: &Path,
        received: Arc<AtomicU64>,
    ) -> Result<Vec<ExportedPart>, Error> {
        let url = Url::new(&["1.0", "images", fingerprint, "export"]);
        let garbled = |detail: String| Error::Garbled { request: format!("GET {url}"), detail };
        let response = self.open(Method::GET, &url, HeaderMap::new(), empty_body()).await?;
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let boundary = header(CONTENT_TYPE)
            .filter(|value| value.starts_with("multipart/form-data"))
            .map(multer::parse_boundary)
            .transpose()
            .map_err(|error| garbled(error.to_string()))?;
        let Some(boundary) = boundary else {
            let name = header(CONTENT_DISPOSITION).and_then(disposition_name).unwrap_or(fingerprint).to_owned();
            let path = export_path(target, &name, false);
            let data = BodyDataStream::new(response.into_body()).map(|chunk| chunk.map_err(io::Error::other));
            return Ok(vec![save(path, data, &received).await?]);
        };
        let data = BodyDataStream::new(response.into_body());
        let mut parts = multer::Multipart::new(data, boundary);
        let mut written = Vec::new();
        while let Some(field) = parts.next_field().await.map_err(|error| garbled(error.to_string()))? {
            let rootfs = field.name().is_some_and(|name| name.starts_with("rootfs"));
            let name = field.file_name().unwrap_or(if rootfs { "rootfs" } else { "metadata" }).to_owned();
            let path = export_path(target, &name, rootfs);
            written.push(save(path, field.map(|chunk| chunk.map_err(io::Error::other)), &received).await?);
        }
        Ok(written)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().replace(['"', '\r', '\n'], "_")).unwrap_or_default()
}

async fn open(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Local { action: "cannot read", path: path.to_owned(), source };
    let file = File::open(path).await.map_err(failed)?;
    if file.metadata().await.map_err(failed)?.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    Ok(file)
}

/// A file's bytes, counted as they are taken.
fn counted(file: File, sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    ReaderStream::with_capacity(file, CHUNK).inspect(move |chunk| {
        if let Ok(bytes) = chunk {
            sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    })
}

/// The file name of a `Content-Disposition: attachment;filename=...`.
fn disposition_name(value: &str) -> Option<&str> {
    let (_, name) = value.split_once("filename=")?;
    let name = name.split(';').next()?.trim().trim_matches('"');
    (!name.is_empty()).then_some(name)
}

/// Where a part of an image goes. The name came from the daemon: only its last component is used.
fn export_path(target: &Path, name: &str, rootfs: bool) -> PathBuf {
    let name = Path::new(name).file_name().map_or_else(|| "image".into(), |name| name.to_string_lossy().into_owned());
    if target.is_dir() {
        return target.join(name);
    }
    let extension = match name.split_once(".tar") {
        Some((_, rest)) => format!(".tar{rest}"),
        None => Path::new(&name).extension().map(|ext| format!(".{}", ext.to_string_lossy())).unwrap_or_default(),
    };
    let mut path = target.as_os_str().to_owned();
    if rootfs {
        path.push(".root");
    }
    path.push(extension);
    path.into()
}

/// Writes a stream to a new file; a partial one is removed again.
async fn save<S>(path: PathBuf, data: S, received: &AtomicU64) -> Result<ExportedPart, Error>
where
    S: Stream<Item = io::Result<Bytes>>,
{
    let failed = |source| Error::Local { action: "cannot write", path: path.clone(), source };
    let mut file = File::create(&path).await.map_err(failed)?;
    let write = async {
        let mut size = 0;
        let mut data = std::pin::pin!(data);
        while let Some(chunk) = data.next().await {
            let chunk = chunk?;
            file.write_all(&chunk).await?;
            size += chunk.len() as u64;
            received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        file.flush().await?;
        io::Result::Ok(size)
    };
    match write.await {
        Ok(size) => Ok(ExportedPart { path, size }),
        Err(source) => {
            let _ = tokio::fs::remove_file(&path).await;
            Err(failed(source))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_names() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(export_path(dir.path(), "../../etc/x.tar.xz", false), dir.path().join("x.tar.xz"));
        let stem = dir.path().join("mine");
        assert_eq!(export_path(&stem, "abc.tar.gz", false), dir.path().join("mine.tar.gz"));
        assert_eq!(export_path(&stem, "abc.squashfs", true), dir.path().join("mine.root.squashfs"));
        assert_eq!(export_path(&stem, "abc", false), stem);
    }

    #[test]
    fn disposition() {
        assert_eq!(disposition_name("attachment;filename=a.tar.gz"), Some("a.tar.gz"));
        assert_eq!(disposition_name("attachment; filename=\"a b\"; x=1"), Some("a b"));
        assert_eq!(disposition_name("inline;filename="), None);
    }
}
