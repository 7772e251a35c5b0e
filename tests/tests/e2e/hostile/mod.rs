//! Bad input: whatever is sent, the answer is a refusal in one sentence that names what is wrong, and the daemon is as
//! it was.

mod clients;
mod generated;
mod http;
mod input;
mod websockets;

use std::time::Duration;

use duet_tests::api::{Request, Response};
use duet_tests::wait::within;
use duet_tests::{Host, eventually};
use serde_json::Value;

/// How the daemon was before it was treated badly.
struct Before {
    descriptors: usize,
    /// Resident memory in KiB.
    memory: u64,
}

/// What may be held more than before: memory that allocators keep.
const KEPT: u64 = 24 << 10;

impl Before {
    fn of(host: &Host) -> Self {
        // The first requests open what stays open.
        host.get("/1.0/instances?recursion=2");
        Self { descriptors: descriptors(host), memory: memory(host) }
    }

    /// Asserts that the daemon has come through all of it.
    #[track_caller]
    fn unharmed(&self, host: &Host) {
        host.get("/1.0/instances?recursion=2");
        let mut now = 0;
        eventually(&format!("{} descriptors as before, not {now}", self.descriptors), || {
            now = descriptors(host);
            (now <= self.descriptors).then_some(())
        });
        // What is free again it gives back once a minute.
        within(Duration::from_secs(90), &format!("{} KiB resident, as before", self.memory), || {
            (memory(host) <= self.memory + KEPT).then_some(())
        });
        assert_no_failure(host);
    }
}

/// No panic, and nothing that the daemon took for its own failure.
#[track_caller]
fn assert_no_failure(host: &Host) {
    let log = host.daemon_log();
    let bad: Vec<&str> =
        log.lines().filter(|line| line.contains("panicked") || line.contains("a request failed")).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

fn descriptors(host: &Host) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", host.daemon_pid())).expect("the daemon's descriptors").count()
}

fn memory(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.daemon_pid())).expect("the daemon's status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// What was not refused as it should have been.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    /// Notes what is not a refusal: a 4xx (or 501 where something is known that is not served) in the envelope, with one
    /// sentence in which `needle` is. Several needles are divided by `|`.
    fn refused(&mut self, what: &str, answer: &Response, needle: &str) {
        let shown: String = String::from_utf8_lossy(&answer.body).chars().take(600).collect();
        let envelope: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let said = envelope["error"].as_str().unwrap_or_default();
        let refused = (400..500).contains(&answer.status) || answer.status == 501;
        let told = envelope["type"] == "error" && envelope["error_code"] == answer.status && !said.is_empty();
        let short = said.len() < 1000 && !said.contains(|c: char| c.is_control());
        let named = needle.split('|').any(|needle| said.to_lowercase().contains(&needle.to_lowercase()));
        if !(refused && told && short && named) {
            self.0.push(format!("{what} ('{needle}'): {} {shown}", answer.status));
        }
    }

    #[track_caller]
    fn none(self) {
        assert!(self.0.is_empty(), "{} were not refused in one sentence:\n  {}", self.0.len(), self.0.join("\n  "));
    }
}

/// Sends a request and gives the answer, or the end of the operation that it began in the form of one.
#[track_caller]
fn outcome(host: &Host, method: &str, path: &str, body: impl Into<Vec<u8>>) -> Response {
    let socket = host.socket();
    let request = Request::new(&socket, method, path).header("Content-Type", "application/json").body(body);
    let mut answer = request.try_send().unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    if answer.status == 202 {
        let operation = answer.json()["operation"].as_str().expect("an operation").to_owned();
        let ended = host.get(&format!("{operation}/wait?timeout=60"));
        answer.status = u16::try_from(ended["status_code"].as_u64().unwrap_or_default()).expect("a status");
        answer.body = serde_json::json!({ "type": "error", "error": ended["err"], "error_code": answer.status })
            .to_string()
            .into_bytes();
    }
    answer
}
