//! The connection, requests and answers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http::header::{CONTENT_TYPE, ETAG, HOST, IF_MATCH, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response as HttpResponse};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;

use super::{Error, Url};
use crate::api;

/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A request without a body.
pub fn empty_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A value as JSON.
pub fn json_body<T: Serialize + ?Sized>(value: &T) -> Body {
    // Wire types hold text, numbers and maps with text keys: serializing them cannot fail.
    let bytes = serde_json::to_vec(value).expect("wire types serialize");
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// Bytes as they come.
pub fn stream_body<S>(stream: S) -> Body
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync()
}

/// Where the daemon keeps its state unless told otherwise.
pub fn default_directory() -> &'static Path {
    Path::new("/var/lib/duet")
}

/// What became of a request that changes something.
#[derive(Debug)]
pub enum Outcome {
    /// It is done; this is the result.
    Done(Value),
    /// It goes on as this operation; see [`Client::wait`].
    Background(api::Operation),
}

/// What a request by hand is answered with.
#[derive(Debug)]
pub enum Reply {
    /// The API's envelope.
    Envelope(api::Response),
    /// Something else: a file, or the API's own description.
    Other(Bytes),
}

/// A client of one daemon.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    project: Option<String>,
    verbose: bool,
    idle: Mutex<Option<SendRequest<Body>>>,
}

impl Client {
    /// A client of the daemon behind `socket`; nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), project: None, verbose: false, idle: Mutex::new(None) }
    }

    /// Asks for things in this project instead of the default one.
    #[must_use]
    pub fn with_project(mut self, project: Option<String>) -> Self {
        self.project = project.filter(|name| name != "default");
        self
    }

    /// Prints each request and its status to standard error.
    #[must_use]
    pub fn with_trace(mut self, verbose: bool) -> Self {
        self.verbose = verbose;
        self
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A new connection to the daemon.
    pub(super) async fn connect(&self) -> Result<UnixStream, Error> {
        UnixStream::connect(&self.socket).await.map_err(|source| Error::connect(self.socket.clone(), source))
    }

    /// Adds the project to a target.
    pub(super) fn target(&self, url: &Url) -> Url {
        match &self.project {
            Some(project) => url.clone().query("project", project),
            None => url.clone(),
        }
    }

    pub(super) fn trace(&self, line: std::fmt::Arguments<'_>) {
        if self.verbose {
            eprintln!("{line}");
        }
    }

    /// The idle connection, or a new one.
    async fn sender(&self) -> Result<SendRequest<Body>, Error> {
        let idle = self.idle.lock().ok().and_then(|mut slot| slot.take());
        if let Some(mut sender) = idle {
            // Fails when the daemon closed the connection in the meantime.
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = self.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Error::Broken { request: "connecting".into(), source })?;
        // The task ends with the connection; its error reaches whoever waits for an answer.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn keep(&self, sender: SendRequest<Body>) {
        if let Ok(mut slot) = self.idle.lock() {
            *slot = Some(sender);
        }
    }

    fn build(&self, method: &Method, url: &Url, headers: HeaderMap, body: Body) -> Result<Request<Body>, Error> {
        let target = self.target(url);
        let mut request = Request::builder()
            .method(method)
            .uri(target.as_str())
            .header(HOST, "unix.socket")
            .header(USER_AGENT, concat!("duet/", env!("CARGO_PKG_VERSION")))
            .body(body)
            .map_err(|error| Error::Garbled { request: format!("{method} {target}"), detail: error.to_string() })?;
        request.headers_mut().extend(headers);
        Ok(request)
    }

    /// Sends a request and hands back the answer before its body was read. The connection is not used again.
    /// A refusal is turned into an error.
    pub async fn open(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Body,
    ) -> Result<HttpResponse<Incoming>, Error> {
        let name = format!("{method} {url}");
        let request = self.build(&method, url, headers, body)?;
        let mut sender = self.sender().await?;
        let broken = |source| Error::Broken { request: name.clone(), source };
        let response = sender.send_request(request).await.map_err(broken)?;
        self.trace(format_args!("{name} -> {}", response.status()));
        if response.status().is_client_error() || response.status().is_server_error() {
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.map_err(broken)?.to_bytes();
            return Err(refusal(&name, parts.status, &bytes));
        }
        Ok(response)
    }

    /// Sends a request and opens the envelope of its answer.
    pub(super) async fn exchange(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Body,
    ) -> Result<api::Response, Error> {
        let name = format!("{method} {url}");
        let (bytes, _) = self.send(method, url, headers, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Garbled { request: name, detail: error.to_string() })
    }

    /// Sends a request and gives the envelope of a success as it came, and its ETag.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Body,
    ) -> Result<(Bytes, Option<String>), Error> {
        let name = format!("{method} {url}");
        let request = self.build(&method, url, headers, body)?;
        let mut sender = self.sender().await?;
        let broken = |source| Error::Broken { request: name.clone(), source };
        let (parts, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let bytes = body.collect().await.map_err(broken)?.to_bytes();
        self.keep(sender);
        self.trace(format_args!("{name} -> {}", parts.status));
        if parts.status.is_client_error() || parts.status.is_server_error() {
            return Err(refusal(&name, parts.status, &bytes));
        }
        let etag = parts.headers.get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok((bytes, etag))
    }

    /// Reads something.
    pub async fn get<T: DeserializeOwned>(&self, url: &Url) -> Result<T, Error> {
        Ok(self.get_with_etag(url).await?.0)
    }

    /// Reads something together with its ETag, which a later change can carry.
    pub async fn get_with_etag<T: DeserializeOwned>(&self, url: &Url) -> Result<(T, Option<String>), Error> {
        // Read straight into what is wanted: a list of a thousand instances is two megabytes.
        #[derive(Deserialize)]
        struct Envelope<T> {
            metadata: T,
        }
        let (bytes, etag) = self.send(Method::GET, url, HeaderMap::new(), empty_body()).await?;
        let envelope: Envelope<T> = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Garbled { request: format!("GET {url}"), detail: error.to_string() })?;
        Ok((envelope.metadata, etag))
    }

    /// Asks for a change; `etag` makes it fail if the thing changed since it was read.
    pub async fn change<T: Serialize + ?Sized>(
        &self,
        method: Method,
        url: &Url,
        value: &T,
        etag: Option<&str>,
    ) -> Result<Outcome, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = etag.and_then(|etag| HeaderValue::from_str(etag).ok()) {
            headers.insert(IF_MATCH, value);
        }
        let name = format!("{method} {url}");
        let answer = self.exchange(method, url, headers, json_body(value)).await?;
        outcome(&name, answer)
    }

    /// Sends a body that is not JSON, such as a file.
    pub async fn upload(&self, method: Method, url: &Url, headers: HeaderMap, body: Body) -> Result<Outcome, Error> {
        let name = format!("{method} {url}");
        let answer = self.exchange(method, url, headers, body).await?;
        outcome(&name, answer)
    }

    /// `POST`.
    pub async fn post<T: Serialize + ?Sized>(&self, url: &Url, value: &T) -> Result<Outcome, Error> {
        self.change(Method::POST, url, value, None).await
    }

    /// `PUT`.
    pub async fn put<T: Serialize + ?Sized>(&self, url: &Url, value: &T, etag: Option<&str>) -> Result<Outcome, Error> {
        self.change(Method::PUT, url, value, etag).await
    }

    /// `PATCH`.
    pub async fn patch<T: Serialize + ?Sized>(&self, url: &Url, value: &T) -> Result<Outcome, Error> {
        self.change(Method::PATCH, url, value, None).await
    }

    /// `DELETE`.
    pub async fn delete(&self, url: &Url) -> Result<Outcome, Error> {
        let answer = self.exchange(Method::DELETE, url, HeaderMap::new(), empty_body()).await?;
        outcome(&format!("DELETE {url}"), answer)
    }

    /// Any request, the answer as it is (`duet query`).
    pub async fn raw(&self, method: Method, url: &Url, body: Option<Vec<u8>>) -> Result<Reply, Error> {
        let mut headers = HeaderMap::new();
        let body = match body {
            Some(bytes) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
            }
            None => empty_body(),
        };
        let (bytes, _) = self.send(method, url, headers, body).await?;
        // Nothing but an envelope says of what kind it is.
        let value = serde_json::from_slice(&bytes).ok().filter(|value: &Value| value["type"].is_string());
        let envelope = value.and_then(|value| serde_json::from_value(value).ok());
        Ok(envelope.map_or(Reply::Other(bytes), Reply::Envelope))
    }
}

fn outcome(request: &str, answer: api::Response) -> Result<Outcome, Error> {
    match answer.kind {
        api::ResponseType::Sync => Ok(Outcome::Done(answer.metadata)),
        api::ResponseType::Async => serde_json::from_value(answer.metadata)
            .map(Outcome::Background)
            .map_err(|error| Error::Garbled { request: request.to_owned(), detail: error.to_string() }),
        api::ResponseType::Error => Err(Error::Garbled { request: request.to_owned(), detail: answer.error }),
    }
}

/// The error behind an answer with an error status.
fn refusal(request: &str, code: http::StatusCode, body: &[u8]) -> Error {
    match serde_json::from_slice::<api::Response>(body) {
        Ok(envelope) if !envelope.error.is_empty() => Error::Refused { code, message: envelope.error },
        _ => {
            let text = String::from_utf8_lossy(body);
            let detail = text.lines().next().unwrap_or_default();
            Error::Refused { code, message: format!("{request} was answered with {code} {detail}").trim_end().into() }
        }
    }
}
