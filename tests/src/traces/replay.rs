//! Sending what a client sent.

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite::Message;

use crate::Host;
use crate::api::{self, Request};
use crate::traces::compare::{self, Faults};
use crate::traces::ids::{Ids, ids};
use crate::traces::{Body, Exchange, Fault, Frame, Side, Trace, sftp};
use crate::websocket::Socket;

/// How long a frame may take that is due.
const DUE: Duration = Duration::from_secs(10);

/// How much later than the answer an operation's last event may come.
const LATE: Duration = Duration::from_millis(500);

/// Headers that the replay makes itself.
const OWN: &[&str] = &["connection", "upgrade", "transfer-encoding"];

/// Sends recordings to a host's daemon.
#[derive(Debug)]
pub struct Replay<'a> {
    host: &'a Host,
    ids: Ids,
    /// Text of the recordings that has to be another here, such as folders of the machine that they were made on.
    instead: Vec<(String, String)>,
    /// What is sent where the recording kept no body, by the recording's name: content type and bytes.
    bodies: HashMap<String, (String, Vec<u8>)>,
    faults: Vec<Fault>,
}

/// What is known in the course of one recording.
#[derive(Default)]
struct Course {
    /// What reading each path gave, theirs and ours.
    seen: HashMap<String, (Value, Value)>,
    /// Operations that may still be running: theirs and ours.
    operations: VecDeque<(String, String)>,
    /// Websockets with the exchange that they belong to.
    sockets: Vec<(usize, Socket)>,
}

impl<'a> Replay<'a> {
    /// For this host.
    pub fn new(host: &'a Host) -> Self {
        Self { host, ids: Ids::default(), instead: Vec::new(), bodies: HashMap::new(), faults: Vec::new() }
    }

    /// Notes that our `ours` is what the recordings call `theirs`.
    pub fn id(&mut self, theirs: &str, ours: &str) {
        self.ids.learn(theirs, ours);
    }

    /// Notes what to write in place of a text of the recordings.
    pub fn instead(&mut self, theirs: &str, ours: &str) {
        self.instead.push((theirs.to_owned(), ours.to_owned()));
    }

    /// What a recording sends of whose body only the length is known.
    pub fn body(&mut self, trace: &str, kind: &str, bytes: Vec<u8>) {
        self.bodies.insert(trace.to_owned(), (kind.to_owned(), bytes));
    }

    /// Everything in which answers were not as recorded.
    pub fn faults(self) -> Vec<Fault> {
        self.faults
    }

    /// Sends what a client sent. `meanwhile` is done once all of it is under way: what others did at that time.
    #[track_caller]
    pub fn run(&mut self, name: &str, meanwhile: impl FnOnce(&Host)) {
        let trace = Trace::read(name);
        let mut course = Course::default();
        let events = |exchange: &Exchange| exchange.request.target.starts_with("/1.0/events");
        // Whoever listens from the beginning misses nothing, however fast an operation is.
        let (listening, rest): (Vec<_>, Vec<_>) = trace.exchanges.iter().enumerate().partition(|(_, e)| events(e));
        for (index, exchange) in listening.into_iter().chain(rest) {
            let mut faults = Faults::new();
            self.exchange(name, &trace, index, &mut course, &mut faults);
            self.note(name, exchange, faults);
        }
        meanwhile(self.host);
        self.streams(name, &trace, &mut course);
        self.wait(&trace, &mut course);
        for (index, mut socket) in course.sockets {
            let exchange = &trace.exchanges[index];
            let mut faults = Faults::new();
            self.events(&exchange.frames, &mut socket, &mut faults);
            self.note(name, exchange, faults);
        }
    }

    /// Reads the streams of operations to their ends.
    fn streams(&mut self, name: &str, trace: &Trace, course: &mut Course) {
        let sockets = course.sockets.drain(..);
        let (listening, mut sockets): (Vec<_>, Vec<_>) =
            sockets.partition(|(index, _)| trace.exchanges[*index].request.target.starts_with("/1.0/events"));
        course.sockets = listening;
        // Those that the client leaves, which ends the others, after these.
        sockets.sort_by_key(|(index, _)| is_left(&trace.exchanges[*index].frames));
        for (index, mut socket) in sockets {
            let exchange = &trace.exchanges[index];
            let mut faults = Faults::new();
            stream(&exchange.frames, &mut socket, is_terminal(trace), &mut faults);
            self.note(name, exchange, faults);
        }
    }

    fn note(&mut self, trace: &str, exchange: &Exchange, faults: Faults) {
        let target = exchange.request.target.split("secret=").next().unwrap_or_default();
        for (place, says) in faults {
            let request = plain(&format!("{} {target}", exchange.request.method));
            let fault = Fault { trace: trace.to_owned(), request, place, says };
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
    }

    #[track_caller]
    fn exchange(&mut self, name: &str, trace: &Trace, index: usize, course: &mut Course, faults: &mut Faults) {
        let exchange = &trace.exchanges[index];
        let request = &exchange.request;
        let of_operation = request.target.starts_with("/1.0/operations/");
        let still_ran = matches!(&exchange.response.body, Some(Body::Json(body))
            if body.pointer("/metadata/status_code").is_some_and(|code| code == 103));
        if !of_operation || (request.target.ends_with(|c| c != 't') && !still_ran && exchange.response.status == 200) {
            // Clients go on when they have heard of an operation's end.
            if !of_operation {
                self.streams(name, trace, course);
            }
            self.wait(trace, course);
        }
        let target = self.ours(&request.target);
        let socket: PathBuf = self.host.socket();
        let mut sent = Request::new(&socket, &request.method, &target);
        for (header, value) in &request.headers {
            let lower = header.to_lowercase();
            let replaced = lower == "content-type" && self.bodies.contains_key(name);
            if !OWN.contains(&lower.as_str()) && !replaced {
                sent = sent.header(header, &self.ours(value));
            }
        }
        if exchange.response.status == 101 {
            return self.upgrade(index, exchange, sent, course, faults);
        }
        let path = request.target.split('?').next().unwrap_or_default().to_owned();
        match &request.body {
            None => {}
            Some(Body::Text(text)) => sent = sent.body(text.clone()),
            Some(Body::Json(body)) => {
                let body = self.sent_back(body, course.seen.get(&path));
                sent = sent.body(self.ours(&body.to_string()));
            }
            Some(Body::Binary(_)) => {
                let (kind, bytes) = self.bodies.get(name).unwrap_or_else(|| panic!("{name} needs a body"));
                sent = sent.header("Content-Type", kind).body(bytes.clone());
            }
        }
        let got = sent.try_send().unwrap_or_else(|error| panic!("{name}: {} {target}: {error}", request.method));
        self.learn(&exchange.response, &got);
        let expected = self.expected(exchange);
        compare::answer(&expected, &got, faults);
        let Ok(ours) = serde_json::from_slice::<Value>(&got.body) else { return };
        if let Some(Body::Json(theirs)) = &exchange.response.body
            && request.method == "GET"
        {
            course.seen.insert(path, (theirs["metadata"].clone(), ours["metadata"].clone()));
        }
        if got.status == 202
            && ours["metadata"]["class"] == "task"
            && let Some(operation) = ours["operation"].as_str()
        {
            let theirs = match &exchange.response.body {
                Some(Body::Json(theirs)) => theirs["metadata"]["id"].as_str().unwrap_or_default(),
                _ => "",
            };
            course.operations.push_back((theirs.to_owned(), operation.to_owned()));
        }
    }

    fn upgrade(&mut self, index: usize, exchange: &Exchange, sent: Request, course: &mut Course, faults: &mut Faults) {
        let protocol = exchange.request.headers.get("Upgrade").map_or("websocket", String::as_str);
        let sent = match protocol {
            "websocket" => {
                sent.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", "37KPcfHgGsXtCXrWccLt2w==")
            }
            _ => sent,
        };
        let (got, reader) = match sent.upgrade(protocol) {
            Ok(upgraded) => upgraded,
            Err(error) => return faults.push(("connection".to_owned(), format!("ended: {error}"))),
        };
        compare::answer(&exchange.response, &got, faults);
        if got.status != 101 {
            return;
        }
        if protocol == "sftp" {
            if let Err(error) = sftp::replay(Buffered(reader), &exchange.sftp, faults) {
                faults.push(("session".to_owned(), format!("ended: {error}")));
            }
            return;
        }
        let mut socket = Socket::upgraded(reader);
        for frame in exchange.frames.iter().filter(|Frame(side, ..)| *side == Side::Client) {
            if let Some(message) = message(frame).filter(|message| !message.is_close()) {
                socket.send_frame(message);
            }
        }
        course.sockets.push((index, socket));
    }

    /// Waits for the ends of what runs, and learns what clients learn from them, such as a new image's fingerprint.
    fn wait(&mut self, trace: &Trace, course: &mut Course) {
        while let Some((theirs, ours)) = course.operations.pop_front() {
            let ours = self.host.get(&format!("{ours}/wait?timeout=60"));
            let mut events = trace.exchanges.iter().flat_map(|exchange| &exchange.frames).map(|Frame(.., event)| event);
            let ended = events.find(|event| {
                event["metadata"]["id"] == theirs.as_str() && event["metadata"]["status_code"] == ours["status_code"]
            });
            if let Some(ended) = ended {
                self.ids.learn_all(&ended["metadata"]["metadata"], &ours["metadata"]);
            }
        }
    }

    /// Holds the events that came against the recorded ones: each of them, by its kind.
    fn events(&mut self, frames: &[Frame], socket: &mut Socket, faults: &mut Faults) {
        let mut came = self.came(socket);
        let theirs = frames
            .iter()
            .filter(|Frame(side, kind, content)| *side == Side::Server && kind == "text" && content.is_object())
            .map(|Frame(_, _, content)| content);
        for theirs in theirs {
            let place = event(theirs);
            if !came.iter().any(|ours| event(ours) == place) {
                came.extend(socket.next(LATE).and_then(|late| serde_json::from_slice(&late.into_data()).ok()));
            }
            let Some(at) = came.iter().position(|ours| event(ours) == place) else {
                let rest: Vec<String> = came.iter().map(event).collect();
                faults.push((place, format!("did not come; there were {rest:?}")));
                continue;
            };
            let ours = came.remove(at);
            self.ids.learn_all(theirs, &ours);
            let mut found = Faults::new();
            compare::json(&self.ids.ours_in(theirs), &ours, &mut found);
            faults.extend(found.into_iter().map(|(at, says)| (format!("{place} {at}"), says)));
        }
    }

    /// All events so far: those before one that is made for this.
    fn came(&self, socket: &mut Socket) -> Vec<Value> {
        let mark = std::process::id().to_string();
        self.host.send("PATCH", "/1.0", &serde_json::json!({ "config": { "user.replayed": mark } }));
        let mut came = Vec::new();
        while let Some(message) = socket.next(DUE) {
            let Ok(event) = serde_json::from_slice::<Value>(&message.into_data()) else { break };
            if event["metadata"]["action"] == "config-updated" {
                break;
            }
            came.push(event);
        }
        came
    }

    fn learn(&mut self, theirs: &super::Response, ours: &api::Response) {
        for (name, value) in &theirs.headers {
            if let Some(got) = ours.header(&name.to_lowercase()) {
                self.ids.learn(value, got);
            }
        }
        if let (Some(Body::Json(theirs)), Ok(ours)) = (&theirs.body, serde_json::from_slice(&ours.body)) {
            self.ids.learn_all(theirs, &ours);
        }
    }

    fn expected(&self, exchange: &Exchange) -> super::Response {
        let response = &exchange.response;
        super::Response {
            status: response.status,
            headers: response.headers.iter().map(|(name, value)| (name.clone(), self.ours(value))).collect(),
            body: response.body.as_ref().map(|body| match body {
                Body::Json(value) => Body::Json(self.ids.ours_in(value)),
                Body::Text(text) => Body::Text(text.clone()),
                Body::Binary(length) => Body::Binary(*length),
            }),
        }
    }

    fn ours(&self, text: &str) -> String {
        let text = self.ids.ours(text);
        self.instead.iter().fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
    }

    /// A body in which what the client had read and sent back unchanged is what it would have read from us.
    fn sent_back(&self, body: &Value, seen: Option<&(Value, Value)>) -> Value {
        match seen {
            Some((theirs, ours)) => self.merge(body, theirs, ours, true),
            None => self.ids.ours_in(body),
        }
    }

    fn merge(&self, body: &Value, theirs: &Value, ours: &Value, top: bool) -> Value {
        if body == theirs {
            return ours.clone();
        }
        let (Value::Object(body), Value::Object(theirs), Value::Object(ours)) = (body, theirs, ours) else {
            return self.ids.ours_in(body);
        };
        let mut merged = Map::new();
        for (name, value) in body {
            match (theirs.get(name), ours.get(name)) {
                (Some(theirs), Some(ours)) => {
                    merged.insert(name.clone(), self.merge(value, theirs, ours, false));
                }
                (Some(theirs), None) if theirs == value => {}
                _ => {
                    merged.insert(name.clone(), self.ids.ours_in(value));
                }
            }
        }
        // Of what is below the top the client sends all that it read.
        for (name, value) in ours.iter().filter(|(name, _)| !top && !theirs.contains_key(*name)) {
            merged.insert(name.clone(), value.clone());
        }
        Value::Object(merged)
    }
}

/// A request without the ids in it.
fn plain(request: &str) -> String {
    ids(request).into_iter().fold(request.to_owned(), |text, id| text.replace(id, "ID"))
}

/// What an event is about.
fn event(event: &Value) -> String {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    match event["type"].as_str() {
        Some("lifecycle") => format!("event {} of {}", text("/metadata/action"), plain(&text("/metadata/source"))),
        _ => format!("event {}, {}", text("/metadata/description"), text("/metadata/status")),
    }
}

/// Holds what came over a stream of an operation, up to its end, against what was recorded.
fn stream(frames: &[Frame], socket: &mut Socket, terminal: bool, faults: &mut Faults) {
    let theirs: Vec<Message> =
        frames.iter().filter(|Frame(side, ..)| *side == Side::Server).filter_map(message).collect();
    let pinged = theirs.iter().any(Message::is_ping);
    if is_left(frames) {
        socket.send_frame(Message::Close(None));
    }
    let expected = Summary::of(&theirs);
    let mut ours = Vec::new();
    loop {
        let summary = Summary::of(&ours);
        // A terminal's stream that the recording ends with the client's going has no end of its own.
        if terminal && !expected.marked && !is_left(frames) && !summary.bytes.is_empty() {
            break;
        }
        let Some(message) = socket.frame(DUE) else { break };
        ours.push(message);
        if matches!(ours.last(), Some(Message::Close(_))) {
            break;
        }
    }
    let got = Summary::of(&ours);
    if pinged && !ours.iter().any(Message::is_ping) {
        faults.push(("ping".to_owned(), "is missing".to_owned()));
    }
    if got.marked != expected.marked {
        faults.push(("frames".to_owned(), format!("end with an empty text: {}, not {}", got.marked, expected.marked)));
    }
    let same = if terminal { got.bytes.is_empty() == expected.bytes.is_empty() } else { got.bytes == expected.bytes };
    if !same {
        let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        faults
            .push(("frames".to_owned(), format!("say {:?} instead of {:?}", show(&got.bytes), show(&expected.bytes))));
    }
}

/// Whether the client closed first.
fn is_left(frames: &[Frame]) -> bool {
    frames.iter().any(|Frame(side, kind, _)| *side == Side::Client && kind == "close")
}

/// What a stream said, in however many frames.
struct Summary {
    bytes: Vec<u8>,
    /// Whether an empty text marked the end.
    marked: bool,
}

impl Summary {
    fn of(messages: &[Message]) -> Self {
        let mut summary = Self { bytes: Vec::new(), marked: false };
        for message in messages {
            match message {
                Message::Binary(bytes) => summary.bytes.extend_from_slice(bytes),
                Message::Text(text) if text.is_empty() => summary.marked = true,
                _ => {}
            }
        }
        summary
    }
}

fn message(Frame(_, kind, content): &Frame) -> Option<Message> {
    let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
    match kind.as_str() {
        "text" => Some(Message::text(text)),
        "binary" => Some(Message::binary(text.into_bytes())),
        "ping" => Some(Message::Ping(text.into_bytes().into())),
        "close" => Some(Message::Close(None)),
        // Pongs are the library's.
        _ => None,
    }
}

/// Whether the recorded command has a terminal.
fn is_terminal(trace: &Trace) -> bool {
    trace.exchanges.iter().any(|exchange| {
        exchange.request.target.contains("/console")
            || matches!(&exchange.request.body, Some(Body::Json(body)) if body["interactive"] == true)
    })
}

/// A connection with what was already read of it.
struct Buffered(BufReader<UnixStream>);

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.get_mut().flush()
    }
}
