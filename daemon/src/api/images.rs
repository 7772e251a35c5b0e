//! `/1.0/images`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use duet_client::api::{self, Image, ImageAlias, ImagePatch, ImagePut, ImagesPost, Timestamp};
use futures_util::StreamExt;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::Recursion;
use super::describe::{Accepted, Empty, Fingerprint, IfMatch, ImageFacts, ImageFiles, ImageForm, Listing, Tagged};
use super::extract::{Input, Path, Query};
use super::response::{
    Answer, accepted, body_bytes, disposition, empty, etag, if_match, parse, sync, tagged, whole_body,
};
use crate::app::App;
use crate::config;
use crate::error::{Context, Error, Result};
use crate::images::{self, Facts, Incoming, Upload};
use crate::inventory::ImageRow;
use crate::operations::{Operation, Plan};

/// A moment, or the API's word for never.
fn moment(at: jiff::Timestamp) -> Timestamp {
    let at = Timestamp(at);
    if at.is_set() { at } else { Timestamp::ZERO }
}

fn wire(row: ImageRow, aliases: Vec<ImageAlias>) -> Image {
    Image {
        auto_update: row.auto_update,
        properties: row.properties,
        public: row.public,
        expires_at: moment(row.expires_at),
        profiles: row.profiles,
        aliases,
        architecture: row.architecture,
        cached: row.cached,
        filename: row.filename,
        fingerprint: row.fingerprint,
        size: row.size,
        update_source: None,
        kind: row.kind,
        created_at: row.created_at.into(),
        last_used_at: moment(row.last_used_at),
        uploaded_at: row.uploaded_at.into(),
        project: "default".into(),
    }
}

fn aliases(app: &App) -> Result<HashMap<String, Vec<ImageAlias>>> {
    let mut aliases: HashMap<String, Vec<ImageAlias>> = HashMap::new();
    for row in app.inventory.aliases()? {
        let alias = ImageAlias { name: row.name, description: row.description };
        aliases.entry(row.fingerprint).or_default().push(alias);
    }
    Ok(aliases)
}

fn writable(row: &ImageRow) -> ImagePut {
    ImagePut {
        auto_update: row.auto_update,
        properties: row.properties.clone(),
        public: row.public,
        expires_at: moment(row.expires_at),
        profiles: row.profiles.clone(),
    }
}

/// Lists the images.
#[utoipa::path(get, path = "/1.0/images", params(Recursion), responses(Listing<Image>))]
pub(super) async fn list(State(app): State<App>, Query(query): Query<Recursion>) -> Answer {
    let rows = app.inventory.images()?;
    if query.all_paths() {
        return Ok(sync(rows.iter().map(|row| format!("/1.0/images/{}", row.fingerprint)).collect::<Vec<_>>()));
    }
    let mut aliases = aliases(&app)?;
    let render = |row: ImageRow| {
        let own = aliases.remove(&row.fingerprint).unwrap_or_default();
        wire(row, own)
    };
    query.answer(rows.into_iter().map(render).collect(), |image| format!("/1.0/images/{}", image.fingerprint))
}

/// Shows an image.
#[utoipa::path(get, path = "/1.0/images/{fingerprint}", params(Fingerprint), responses(Tagged<Image>))]
pub(super) async fn get(State(app): State<App>, Path(fingerprint): Path<String>) -> Answer {
    let row = images::find(&app, &fingerprint)?;
    let tag = etag(&writable(&row));
    let own = aliases(&app)?.remove(&row.fingerprint).unwrap_or_default();
    Ok(tagged(wire(row, own), &tag))
}

/// Replaces what can be changed of an image.
#[utoipa::path(
    put,
    path = "/1.0/images/{fingerprint}",
    params(Fingerprint, IfMatch),
    request_body = ImagePut,
    responses(Empty)
)]
pub(super) async fn put(
    State(app): State<App>,
    Path(fingerprint): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ImagePut>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let row = images::find(&app, &fingerprint)?;
    if_match(&headers, &etag(&writable(&row)))?;
    store(&app, row, body).await
}

/// Changes what is present of an image.
#[utoipa::path(
    patch,
    path = "/1.0/images/{fingerprint}",
    params(Fingerprint, IfMatch),
    request_body = ImagePatch,
    responses(Empty)
)]
pub(super) async fn patch(
    State(app): State<App>,
    Path(fingerprint): Path<String>,
    headers: HeaderMap,
    Input(body): Input<ImagePatch>,
) -> Answer {
    let _turn = app.edits.lock().await;
    let row = images::find(&app, &fingerprint)?;
    let mut next = writable(&row);
    if_match(&headers, &etag(&next))?;
    next.auto_update = body.auto_update.unwrap_or(next.auto_update);
    next.public = body.public.unwrap_or(next.public);
    next.expires_at = body.expires_at.unwrap_or(next.expires_at);
    next.profiles = body.profiles.unwrap_or(next.profiles);
    super::merge(&mut next.properties, body.properties.unwrap_or_default());
    store(&app, row, next).await
}

async fn store(app: &App, mut row: ImageRow, next: ImagePut) -> Answer {
    for profile in &next.profiles {
        if app.inventory.profile(profile)?.is_none() {
            return Err(Error::invalid(format!("Profile \"{profile}\" not found")));
        }
    }
    row.auto_update = next.auto_update;
    row.public = next.public;
    row.expires_at = next.expires_at.0;
    row.profiles = next.profiles;
    row.properties = next.properties;
    config::drop_unset(&mut row.properties);
    let path = format!("/1.0/images/{}", row.fingerprint);
    app.inventory.write(move |tx| row.update(tx)).await?;
    app.events.lifecycle("image-updated", path, serde_json::Value::Null);
    Ok(empty())
}

/// Deletes an image.
///
/// What instances still use of it is kept until they are gone.
#[utoipa::path(delete, path = "/1.0/images/{fingerprint}", params(Fingerprint), responses(Accepted))]
pub(super) async fn delete(State(app): State<App>, Path(fingerprint): Path<String>) -> Answer {
    let row = images::find(&app, &fingerprint)?;
    let plan = Plan::new("Deleting image").resource("images", format!("/1.0/images/{}", row.fingerprint));
    let working = app.clone();
    let operation = app.operations.spawn(plan, |_| async move { images::delete(&working, &row).await });
    Ok(accepted(&operation))
}

/// Makes an image: builds it, publishes an instance, or takes in an upload.
///
/// The headers belong to uploads; their names may begin with `X-LXD-` as well.
#[utoipa::path(
    post,
    path = "/1.0/images",
    params(ImageFacts),
    request_body(
        description = "What to make the image of, or the image: one file, or metadata and root file system apart.",
        content((ImagesPost = "application/json"), ("application/octet-stream"), (ImageForm = "multipart/form-data"))
    ),
    responses(Accepted)
)]
pub(super) async fn create(State(app): State<App>, request: Request) -> Answer {
    whole_body(request.headers())?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    if let Ok(boundary) = multer::parse_boundary(&kind) {
        return upload_form(app, request, boundary).await;
    }
    let request = match kind.as_str() {
        "" => {
            let (is_json, request) = begins_like_json(request).await?;
            if !is_json {
                return upload_file(app, request).await;
            }
            request
        }
        kind if kind.starts_with("application/octet-stream") => return upload_file(app, request).await,
        _ => request,
    };
    let bytes = body_bytes(request.into_body()).await?;
    let post: ImagesPost = parse(&bytes)?;
    let operation = from_source(&app, post)?;
    Ok(accepted(&operation))
}

/// Looks at the first piece of a body that does not say what it is, as pylxd sends images. No image begins with a brace.
async fn begins_like_json(request: Request) -> Result<(bool, Request)> {
    let (parts, body) = request.into_parts();
    let mut pieces = body.into_data_stream();
    let first = match pieces.next().await {
        Some(piece) => piece.map_err(|e| Error::invalid(format!("the upload broke off: {e}")))?,
        None => return Err(Error::invalid("the request has no body: send an image, or say in JSON where it is")),
    };
    let is_json = first.trim_ascii_start().first().is_some_and(|byte| *byte == b'{');
    let body = Body::from_stream(futures_util::stream::once(async { Ok(first) }).chain(pieces));
    Ok((is_json, Request::from_parts(parts, body)))
}

fn from_source(app: &App, post: ImagesPost) -> Result<Arc<Operation>> {
    let source = post.source.clone().unwrap_or_default();
    let facts = Facts {
        filename: post.filename,
        public: post.public,
        auto_update: post.auto_update,
        properties: post.properties.unwrap_or_default(),
        profiles: post.profiles.unwrap_or_default(),
        aliases: post.aliases.unwrap_or_default(),
        expires_at: post.expires_at.is_set().then_some(post.expires_at.0),
        fingerprint: None,
    };
    let working = app.clone();
    match source.kind.as_str() {
        "build" => {
            let recipe = images::recipe(&source.recipe)?;
            let plan = Plan::new("Building image").cancellable();
            Ok(app.operations.spawn(plan, |operation| async move {
                images::build(&working, recipe, &source.mirror, facts, &operation).await
            }))
        }
        "instance" | "container" | "snapshot" => {
            let publication = images::Publication::check(app, &source.name, &post.compression_algorithm)?;
            let plan = Plan::new("Publishing image").cancellable();
            Ok(app.operations.spawn(plan, |operation| async move {
                images::publish(&working, publication, facts, &operation).await
            }))
        }
        "image" | "url" => Err(Error::invalid(
            "image servers are not served by this version: upload the image's files, or build it from a recipe",
        )),
        other => {
            Err(Error::invalid(format!("the source type \"{other}\" is not known: use build, instance or snapshot")))
        }
    }
}

/// What an upload's headers say. Both spellings of their prefix are taken, as Incus does.
fn facts(headers: &HeaderMap) -> Result<Facts> {
    let value = |name: &str| {
        let lxd = name.replace("x-incus-", "x-lxd-");
        let value = headers.get(name).or_else(|| headers.get(lxd.as_str()));
        value.and_then(|v| v.to_str().ok()).map(str::to_owned).filter(|v| !v.is_empty())
    };
    let pairs = |name: &str| -> Result<Vec<(String, String)>> {
        let Some(text) = value(name) else { return Ok(Vec::new()) };
        text.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                match (super::unescape(key), super::unescape(value)) {
                    (Some(key), Some(value)) => Ok((key, value)),
                    _ => Err(Error::invalid(format!("the header {name} is not an URL query"))),
                }
            })
            .collect()
    };
    let named = |name: &str, key: &str| -> Result<Vec<String>> {
        Ok(pairs(name)?.into_iter().filter(|(k, _)| k == key).map(|(_, v)| v).collect())
    };
    Ok(Facts {
        filename: value(api::HEADER_IMAGE_FILENAME).unwrap_or_default(),
        public: value(api::HEADER_IMAGE_PUBLIC).is_some_and(|v| matches!(v.as_str(), "1" | "true")),
        auto_update: false,
        properties: pairs(api::HEADER_IMAGE_PROPERTIES)?.into_iter().collect(),
        profiles: named(api::HEADER_IMAGE_PROFILES, "profile")?,
        aliases: named(api::HEADER_IMAGE_ALIASES, "alias")?
            .into_iter()
            .map(|name| ImageAlias { name, description: String::new() })
            .collect(),
        expires_at: None,
        fingerprint: value(api::HEADER_IMAGE_FINGERPRINT),
    })
}

async fn upload_file(app: App, request: Request) -> Answer {
    let facts = facts(request.headers())?;
    let incoming = Incoming::new(&app)?;
    let mut upload = Upload::create(&incoming.meta())?;
    let mut pieces = request.into_body().into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| Error::invalid(format!("the upload broke off: {e}")))?;
        upload.write(piece).await?;
    }
    Ok(take_in(&app, incoming, facts))
}

async fn upload_form(app: App, request: Request, boundary: String) -> Answer {
    let facts = facts(request.headers())?;
    let mut incoming = Incoming::new(&app)?;
    let mut form = multer::Multipart::new(request.into_body().into_data_stream(), boundary);
    let broken = |e: multer::Error| Error::invalid(format!("the form with the image's files is broken: {e}"));
    let mut has_meta = false;
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        let path = match field.name() {
            Some("metadata") if !has_meta => {
                has_meta = true;
                incoming.meta()
            }
            Some("rootfs") if has_meta && !incoming.split => {
                incoming.split = true;
                incoming.rootfs()
            }
            Some("rootfs.img") => {
                return Err(Error::invalid("this is a virtual machine's image: they are not served by this version"));
            }
            other => {
                let name = other.unwrap_or("");
                return Err(Error::invalid(format!(
                    "an image's form has the parts \"metadata\" and then \"rootfs\", not \"{name}\""
                )));
            }
        };
        let mut upload = Upload::create(&path)?;
        while let Some(piece) = field.chunk().await.map_err(broken)? {
            upload.write(piece).await?;
        }
    }
    if !has_meta {
        return Err(Error::invalid("the form has no part \"metadata\""));
    }
    Ok(take_in(&app, incoming, facts))
}

fn take_in(app: &App, incoming: Incoming, facts: Facts) -> Response {
    let working = app.clone();
    let operation = app.operations.spawn(Plan::new("Downloading image").cancellable(), |operation| async move {
        images::add(&working, incoming, facts, &operation).await?;
        Ok(())
    });
    accepted(&operation)
}

/// Sends an image: one file, or two as a form.
#[utoipa::path(get, path = "/1.0/images/{fingerprint}/export", params(Fingerprint), responses(ImageFiles))]
pub(super) async fn export(State(app): State<App>, Path(fingerprint): Path<String>) -> Answer {
    let row = images::find(&app, &fingerprint)?;
    let export = images::export(&app, &row)?;
    let open =
        |path: std::path::PathBuf| async move { tokio::fs::File::open(path).await.doing("cannot read the image") };
    let (meta_path, meta_name) = export.meta;
    let meta = open(meta_path).await?;
    let Some((rootfs_path, rootfs_name)) = export.rootfs else {
        let length = meta.metadata().await?.len();
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (header::CONTENT_LENGTH, HeaderValue::from(length)),
            (header::CONTENT_DISPOSITION, disposition(&meta_name)),
        ];
        return Ok((headers, Body::from_stream(ReaderStream::with_capacity(meta, 256 << 10))).into_response());
    };
    let rootfs = open(rootfs_path).await?;
    let boundary = uuid::Uuid::new_v4().simple().to_string();
    let part = |name: &str, file: &str| {
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
    };
    let first = std::io::Cursor::new(part("metadata", &meta_name));
    let second = std::io::Cursor::new(format!("\r\n{}", part("rootfs", &rootfs_name)));
    let last = std::io::Cursor::new(format!("\r\n--{boundary}--\r\n"));
    let body = first.chain(meta).chain(second).chain(rootfs).chain(last);
    let kind = HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}")).map_err(Error::internal)?;
    let headers =
        [(header::CONTENT_TYPE, kind), (HeaderName::from_static("x-incus-type"), HeaderValue::from_static("incus"))];
    Ok((headers, Body::from_stream(ReaderStream::with_capacity(body, 256 << 10))).into_response())
}
