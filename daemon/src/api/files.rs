//! `/1.0/instances/{name}/files?path=`: files in and out, in Incus' form: the owner, mode and type travel in headers.

use std::io::{self, Read, Write};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use duet_client::api::{
    FileKind, HEADER_FORCE, HEADER_GID, HEADER_MODE, HEADER_MODIFIED, HEADER_TYPE, HEADER_UID, HEADER_WRITE,
};
use duet_container::files::{self, Changes, Handle, OpenFlags, Owner, Stat, WriteOptions};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::describe::{ContentTooLarge, Empty, FileContent, FileFacts, FileHead, Forbidden, Force, InstanceName};
use super::extract::{Path, Query};
use super::response::{Answer, disposition, empty, sync, whole_body};
use crate::app::App;
use crate::error::{Error, Result, at_leisure, blocking};
use crate::instances::files::{Access, Files, failure, open};

/// Pieces of a file on their way between the service's thread and the connection.
const IN_FLIGHT: usize = 2;
/// Bytes of a piece. A client that does not read costs this some times over.
const PIECE: usize = 64 << 10;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Where {
    /// The path inside of the instance.
    #[param(required = true, value_type = String)]
    path: Option<String>,
}

impl Where {
    fn path(self) -> Result<String> {
        self.path.filter(|p| !p.is_empty()).ok_or_else(|| Error::invalid("missing path argument: ?path=/etc/hostname"))
    }
}

/// Every header under both of its spellings.
fn describe(stat: &Stat, kind: FileKind) -> Result<HeaderMap> {
    let modified = jiff::Timestamp::new(stat.mtime.seconds, 0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let values = [
        (HEADER_UID, stat.uid.to_string()),
        (HEADER_GID, stat.gid.to_string()),
        (HEADER_MODE, format!("{:04o}", stat.mode & 0o7777)),
        (HEADER_TYPE, kind.name().to_owned()),
        (HEADER_MODIFIED, modified.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()),
    ];
    let mut headers = HeaderMap::new();
    for (name, value) in values {
        let value = HeaderValue::from_str(&value).map_err(Error::internal)?;
        for spelling in [name.to_owned(), name.replace("x-incus-", "x-lxd-")] {
            let spelling = HeaderName::from_bytes(spelling.as_bytes()).map_err(Error::internal)?;
            headers.insert(spelling, value.clone());
        }
    }
    Ok(headers)
}

/// The length of a file, unless it cannot be told: what the kernel makes up when it is read, as in /proc, says of itself
/// that it is empty.
fn announced(stat: &Stat) -> Option<u64> {
    Some(stat.size).filter(|size| *size > 0)
}

fn kind_of(stat: &Stat, path: &str) -> Result<FileKind> {
    match stat.kind {
        files::FileKind::File => Ok(FileKind::File),
        files::FileKind::Directory => Ok(FileKind::Directory),
        files::FileKind::Symlink => Ok(FileKind::Symlink),
        files::FileKind::Fifo
        | files::FileKind::Socket
        | files::FileKind::CharDevice
        | files::FileKind::BlockDevice
        | files::FileKind::Unknown => Err(Error::invalid(format!(
            "\"{path}\" is a device, pipe or socket: only files, directories and links are served"
        ))),
    }
}

/// Shows what stands at a path, in headers.
#[utoipa::path(head, path = "/1.0/instances/{name}/files", params(InstanceName, Where), responses(FileHead, Forbidden))]
pub(super) async fn head(State(app): State<App>, Path(name): Path<String>, Query(query): Query<Where>) -> Answer {
    let path = query.path()?;
    let mut files = open(&app, &name, Access::Read).await?;
    let stat = blocking(move || files.session.lstat(&path).map(|s| (s, path)).map_err(|e| failure(&e))).await?;
    let (stat, path) = stat;
    let kind = kind_of(&stat, &path)?;
    let mut headers = describe(&stat, kind)?;
    if let (FileKind::File, Some(size)) = (kind, announced(&stat)) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    }
    Ok((headers, Body::empty()).into_response())
}

/// Sends a file's bytes, a link's target, or the names in a directory.
#[utoipa::path(
    get,
    path = "/1.0/instances/{name}/files",
    params(InstanceName, Where),
    responses(FileContent, Forbidden)
)]
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>, Query(query): Query<Where>) -> Answer {
    let path = query.path()?;
    let mut files = open(&app, &name, Access::Read).await?;
    let (stat, kind, mut files, path) = blocking(move || -> Result<_> {
        let stat = files.session.lstat(&path).map_err(|e| failure(&e))?;
        let kind = kind_of(&stat, &path)?;
        Ok((stat, kind, files, path))
    })
    .await?;
    let mut headers = describe(&stat, kind)?;
    let download = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_DISPOSITION, disposition(path.rsplit('/').next().unwrap_or_default())),
    ];
    match kind {
        FileKind::Directory => {
            let names = blocking(move || {
                let mut names: Vec<String> = files
                    .session
                    .list(&path)
                    .map_err(|e| failure(&e))?
                    .into_iter()
                    .map(|entry| String::from_utf8_lossy(entry.name.as_bytes()).into_owned())
                    .collect();
                names.sort();
                Ok::<_, Error>(names)
            })
            .await?;
            let mut response = sync(names);
            response.headers_mut().extend(headers);
            Ok(response)
        }
        FileKind::Symlink => {
            let target = blocking(move || files.session.read_link(&path).map_err(|e| failure(&e))).await?;
            use std::os::unix::ffi::OsStringExt;
            headers.extend(download);
            Ok((headers, target.into_os_string().into_vec()).into_response())
        }
        FileKind::File => {
            // What the name led to a moment ago says nothing about what is opened now.
            let (opened, files, path) = blocking(move || -> Result<_> {
                let flags = OpenFlags { read: true, ..OpenFlags::default() };
                let opened = files.session.open(&path, flags, 0, Owner::default()).map_err(|e| failure(&e))?;
                Ok((opened, files, path))
            })
            .await?;
            let mut headers = describe(&opened.stat, kind)?;
            headers.extend(download);
            let size = announced(&opened.stat);
            if let Some(size) = size {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
            }
            Ok(stream(headers, files, opened.handle, path, size))
        }
    }
}

/// Sends exactly as many bytes as were announced: a file that grows meanwhile is cut, one that shrinks breaks off. Where
/// none were, sends all there are.
fn stream(headers: HeaderMap, mut files: Files, handle: Handle, path: String, size: Option<u64>) -> Response {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(IN_FLIGHT);
    tokio::spawn(at_leisure(move || {
        let mut out = Announced { sender, left: size.unwrap_or(u64::MAX) };
        if let Err(error) = files.session.read_handle_to(handle, std::path::Path::new(&path), &mut out) {
            let _ = out.sender.blocking_send(Err(io::Error::other(error.to_string())));
        } else if size.is_some() && out.left > 0 {
            let _ = out.sender.blocking_send(Err(io::Error::other("the file became shorter while it was read")));
        }
        Ok(())
    }));
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    (headers, Body::from_stream(pieces)).into_response()
}

struct Announced {
    sender: mpsc::Sender<io::Result<Bytes>>,
    left: u64,
}

impl Write for Announced {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len()).min(PIECE);
        if count == 0 {
            // More than was announced: swallowed.
            return Ok(data.len());
        }
        self.sender
            .blocking_send(Ok(Bytes::copy_from_slice(&data[..count])))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client went away"))?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What an upload's headers say.
struct Wanted {
    owner: Owner,
    mode: Option<u32>,
    kind: FileKind,
    append: bool,
}

fn wanted(headers: &HeaderMap) -> Result<Wanted> {
    let value = |name: &str| -> Result<Option<&str>> {
        let lxd = name.replace("x-incus-", "x-lxd-");
        let Some(value) = headers.get(name).or_else(|| headers.get(lxd.as_str())) else { return Ok(None) };
        let text = value.to_str().map_err(|_| Error::invalid(format!("{name}: what it says is not ASCII")))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    };
    let id = |name: &str| -> Result<Option<u32>> {
        let parse = |text: &str| match text {
            // Incus' own client sends -1 for "leave it".
            "-1" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| Error::invalid(format!("{name}: \"{text}\" is no user or group id")))
            }
        };
        value(name)?.map_or(Ok(None), parse)
    };
    let mode = match value(HEADER_MODE)? {
        None => None,
        Some(text) => Some(
            u32::from_str_radix(text, 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| Error::invalid(format!("{HEADER_MODE}: \"{text}\" is no octal mode such as 0644")))?,
        ),
    };
    let kind = value(HEADER_TYPE)?.map_or(Ok(FileKind::File), str::parse);
    let append = match value(HEADER_WRITE)? {
        None | Some("overwrite") => false,
        Some("append") => true,
        Some(other) => {
            return Err(Error::invalid(format!("{HEADER_WRITE}: \"{other}\" is not known: use overwrite or append")));
        }
    };
    Ok(Wanted {
        owner: Owner { uid: id(HEADER_UID)?, gid: id(HEADER_GID)? },
        mode,
        kind: kind.map_err(|e| Error::invalid(e.to_string()))?,
        append,
    })
}

/// Writes a file, a link or a directory.
///
/// The headers' names may begin with `X-LXD-` as well.
#[utoipa::path(
    post,
    path = "/1.0/instances/{name}/files",
    params(InstanceName, Where, FileFacts),
    request_body(description = "A file's bytes or a link's target.", content_type = "application/octet-stream"),
    responses(Empty, Forbidden, ContentTooLarge)
)]
pub(super) async fn post(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Where>,
    request: Request,
) -> Answer {
    let path = query.path()?;
    whole_body(request.headers())?;
    let wanted = wanted(request.headers())?;
    let mut files = open(&app, &name, Access::Write).await?;
    match wanted.kind {
        FileKind::Directory => {
            blocking(move || make_dir(&mut files, &path, &wanted)).await?;
        }
        FileKind::Symlink => {
            let target = super::response::body_bytes(request.into_body()).await?;
            use std::os::unix::ffi::OsStrExt;
            blocking(move || {
                let target = std::ffi::OsStr::from_bytes(&target);
                // A link is replaced, as Incus does; anything else of that name stays and is an error.
                if files.session.lstat(&path).is_ok_and(|s| s.kind == files::FileKind::Symlink) {
                    files.session.remove(&path).map_err(|e| failure(&e))?;
                }
                files.session.symlink(target, &path, default_owner(wanted.owner)).map_err(|e| failure(&e))
            })
            .await?;
        }
        FileKind::File => upload(files, path, wanted, request.into_body()).await?,
    }
    let path = format!("/1.0/instances/{name}");
    app.events.lifecycle("instance-file-pushed", path, serde_json::Value::Null);
    Ok(empty())
}

/// Who owns what is new, where nobody says.
fn default_owner(owner: Owner) -> Owner {
    Owner { uid: owner.uid.or(Some(0)), gid: owner.gid.or(Some(0)) }
}

fn make_dir(files: &mut Files, path: &str, wanted: &Wanted) -> Result<()> {
    match files.session.mkdir(path, wanted.mode.unwrap_or(0o755), default_owner(wanted.owner)) {
        // One that is there already is brought to what is asked.
        Err(files::FileError::Exists { .. }) => {
            let stat = files.session.stat(path).map_err(|e| failure(&e))?;
            if stat.kind != files::FileKind::Directory {
                return Err(Error::invalid(format!("\"{path}\" exists and is no directory")));
            }
            let changes = Changes { mode: wanted.mode, owner: wanted.owner, ..Changes::default() };
            files.session.set_stat(path, true, changes).map_err(|e| failure(&e))
        }
        other => other.map_err(|e| failure(&e)),
    }
}

/// Reads a body on the service's thread.
struct Incoming {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

async fn upload(mut files: Files, path: String, wanted: Wanted, body: Body) -> Result<()> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let writing = tokio::spawn(at_leisure(move || -> Result<()> {
        let exists = files.session.stat(&path).is_ok();
        let owner = if exists { wanted.owner } else { default_owner(wanted.owner) };
        let mode = wanted.mode.or((!exists).then_some(0o644));
        let options = WriteOptions { mode, owner, append: wanted.append };
        let mut incoming = Incoming { receiver, rest: Bytes::new() };
        match files.session.write_from(&path, &mut incoming, &options) {
            // It is the client's end that broke.
            Err(files::FileError::Transfer(error)) => Err(Error::invalid(format!("the upload broke off: {error}"))),
            other => other.map(drop).map_err(|e| failure(&e)),
        }
    }));
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        // The writer has ended early: its own error says why.
        if sender.send(piece.map_err(io::Error::other)).await.is_err() {
            break;
        }
    }
    drop(sender);
    writing.await?
}

/// Deletes a file, a link or a directory.
#[utoipa::path(
    delete,
    path = "/1.0/instances/{name}/files",
    params(InstanceName, Where, Force),
    responses(Empty, Forbidden)
)]
pub(super) async fn delete(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Where>,
    headers: HeaderMap,
) -> Answer {
    let path = query.path()?;
    let force = match headers.get(HEADER_FORCE).map(|value| value.to_str().unwrap_or_default()) {
        None | Some("" | "0" | "false") => false,
        Some("1" | "true") => true,
        Some(other) => return Err(Error::invalid(format!("{HEADER_FORCE}: \"{other}\" is neither true nor false"))),
    };
    let mut files = open(&app, &name, Access::Write).await?;
    blocking(move || {
        let stat = files.session.lstat(&path).map_err(|e| failure(&e))?;
        let gone = match stat.kind {
            files::FileKind::Directory if force => files.session.remove_tree(&path, |_| true).map(|_| ()),
            files::FileKind::Directory => files.session.rmdir(&path),
            _ => files.session.remove(&path),
        };
        gone.map_err(|e| failure(&e))
    })
    .await?;
    app.events.lifecycle("instance-file-deleted", format!("/1.0/instances/{name}"), serde_json::Value::Null);
    Ok(empty())
}
