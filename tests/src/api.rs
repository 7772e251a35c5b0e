//! HTTP and websockets to the daemon's socket, written out so that nothing of Duet's own client is trusted here.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::{conformance, openapi};

/// How long an answer may take. Operations are waited for with requests that themselves wait.
const DEADLINE: Duration = Duration::from_secs(120);

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body, with any chunking undone.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", String::from_utf8_lossy(&self.body)))
    }

    /// The envelope's `metadata`, of an answer that has to be a success.
    #[track_caller]
    pub fn metadata(&self) -> Value {
        let mut envelope = self.json();
        assert!(self.status < 400, "status {}: {envelope:#}", self.status);
        envelope["metadata"].take()
    }

    /// Asserts an error with the given status and `needle` in its sentence.
    #[track_caller]
    pub fn refused(&self, status: u16, needle: &str) {
        let envelope = self.json();
        let said = envelope["error"].as_str().unwrap_or_default().to_lowercase();
        assert!(
            self.status == status
                && envelope["type"] == "error"
                && envelope["error_code"] == status
                && said.contains(&needle.to_lowercase()),
            "was to be refused with {status} and '{needle}', is {}: {envelope:#}",
            self.status
        );
    }
}

/// A request under construction.
#[derive(Debug)]
pub struct Request<'a> {
    socket: &'a Path,
    method: &'a str,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl<'a> Request<'a> {
    /// A request without body.
    pub fn new(socket: &'a Path, method: &'a str, path: &str) -> Self {
        Self { socket, method, path: path.to_owned(), headers: vec![], body: vec![] }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends this as the body.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// Sends this as the body, with its content type.
    pub fn json(self, value: &Value) -> Self {
        self.header("Content-Type", "application/json").body(value.to_string())
    }

    /// Sends it over a connection of its own, reads the whole answer and asserts that it is one that Incus might give and
    /// that Duet says it gives.
    #[track_caller]
    pub fn send(self) -> Response {
        let (method, path) = (self.method.to_owned(), self.path.clone());
        let response = self.try_send().unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        if response.header("content-type").is_some_and(|kind| kind.starts_with("application/json"))
            && let Ok(body) = serde_json::from_slice(&response.body)
        {
            conformance::assert_conforms(&method, &path, response.status, &body);
        }
        openapi::assert_described(&method, &path, &response);
        response
    }

    /// As [`send`](Self::send), for a daemon that may not be there.
    pub fn try_send(self) -> std::io::Result<Response> {
        let (mut reader, sent) = self.put_out("close")?;
        match read_response(self.method, &mut reader) {
            Err(_) if sent.is_err() => sent.map(|()| unreachable!("it is an error")),
            answer => answer,
        }
    }

    /// Asks to switch to another protocol. Gives the answer's head, and the connection behind it.
    pub fn upgrade(self, protocol: &str) -> std::io::Result<(Response, BufReader<UnixStream>)> {
        let (mut reader, sent) = self.header("Upgrade", protocol).put_out("Upgrade")?;
        sent?;
        let (status, headers) = read_head(&mut reader)?;
        Ok((Response { status, headers, body: Vec::new() }, reader))
    }

    /// Sends it. A daemon may refuse a body before it has read it; its answer is what counts then, so that how the
    /// sending of the body went is given beside.
    fn put_out(&self, connection: &str) -> std::io::Result<(BufReader<UnixStream>, std::io::Result<()>)> {
        let mut stream = UnixStream::connect(self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut head = format!("{} {} HTTP/1.1\r\nHost: duet\r\nConnection: {connection}\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || matches!(self.method, "POST" | "PUT" | "PATCH") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        let sent = stream.write_all(&self.body);
        Ok((BufReader::new(stream), sent))
    }
}

/// A connection that stays open from one request to the next.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the daemon at `socket`.
    #[track_caller]
    pub fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline for reading");
        Self { reader: BufReader::new(stream) }
    }

    /// Sends a request and reads the whole answer, which is not looked into.
    #[track_caller]
    pub fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: duet\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let sent = self.reader.get_mut().write_all(request.as_bytes());
        let answer = sent.and_then(|()| read_response(method, &mut self.reader));
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }
}

fn invalid(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what)
}

/// Reads status line and headers.
pub(crate) fn read_head(reader: &mut impl BufRead) -> std::io::Result<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| invalid("no status line"))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok((status, headers));
        };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
}

fn read_response(method: &str, reader: &mut impl BufRead) -> std::io::Result<Response> {
    let (status, headers) = read_head(reader)?;
    let mut response = Response { status, headers, body: Vec::new() };
    if method == "HEAD" {
        // Its headers are those of the body that a GET would have.
        return Ok(response);
    }
    if response.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        read_chunks(reader, &mut response.body)?;
    } else if let Some(length) = response.header("content-length").and_then(|length| length.parse().ok()) {
        response.body = vec![0; length];
        reader.read_exact(&mut response.body)?;
    } else {
        reader.read_to_end(&mut response.body)?;
    }
    Ok(response)
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> std::io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(|_| invalid("a chunk without size"))?;
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        let mut end = [0; 2];
        reader.read_exact(&mut end)?;
        if size == 0 {
            return Ok(());
        }
    }
}
