//! What a guest says to its host, and a host to its guest: both ends of a virtual machine's agent.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use duet_agent::mux::{Engine, Event, Link, Lost};
use duet_agent::protocol::frame::{Frame, decode, encode};
use duet_agent::protocol::hello::Hello;
use duet_agent::protocol::message::{self, Control, ExecStatus, Reply, Request};
use duet_agent::protocol::{STDERR, STDIN, STDOUT};

use crate::assert_sentence;

/// Takes how much arrives at once, in units of eight bytes, and what arrives.
pub fn run(data: &[u8]) {
    if let Ok(Some((used, channel, frame))) = decode(data) {
        let mut written = Vec::new();
        encode(channel, frame, &mut written);
        assert_eq!(written, data[..used]);
    }
    let Some((piece, bytes)) = data.split_first() else { return };
    let piece = usize::from(*piece) * 8 + 1;
    let null =
        |write: bool| -> OwnedFd { OpenOptions::new().read(!write).write(write).open("/dev/null").unwrap().into() };

    let mut guest = Engine::guest(null(true)).unwrap();
    guest.feed(&Hello::ours(1).encode(), &mut Vec::new()).unwrap();
    feed(&mut guest, bytes, piece).expect("a guest looks for the next greeting");

    let mut host = Engine::host(null(true), Link::Fresh, 7).unwrap();
    host.feed(&Hello::ours(7).encode(), &mut Vec::new()).unwrap();
    let channel = host.open(b"{}").unwrap();
    host.attach(channel, STDIN, File::open("/dev/zero").unwrap().into()).unwrap();
    host.attach(channel, STDOUT, null(true)).unwrap();
    host.attach(channel, STDERR, null(true)).unwrap();
    if let Err(lost) = feed(&mut host, bytes, piece) {
        assert_sentence(&lost.to_string());
    }
}

fn feed(engine: &mut Engine, bytes: &[u8], piece: usize) -> Result<(), Lost> {
    let mut events = Vec::new();
    for piece in bytes.chunks(piece) {
        engine.feed(piece, &mut events)?;
    }
    for event in events {
        match event {
            Event::Opened(_, text) => drop(message::decode::<Request>(&text)),
            Event::Message(_, text) => {
                drop(message::decode::<Control>(&text));
                said(message::decode(&text));
            }
            Event::Greeted | Event::Reset | Event::Closed(_) => {}
        }
    }
    Ok(())
}

/// What a host makes of an answer.
fn said(reply: Result<Reply, message::ErrorReply>) {
    match reply {
        Ok(Reply::State(state)) => {
            let state = state.bounded();
            assert!(message::encode(&state.network).len() < 1 << 20);
            assert_sentence(&state.hostname);
        }
        Ok(Reply::Exited { status }) => assert!((0..256).contains(&ExecStatus::shell_code(status))),
        Ok(Reply::Error(error)) | Err(error) => assert_sentence(&error.bounded().message),
        Ok(Reply::Done | Reply::Started { .. }) => {}
    }
}

/// A frame of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let state =
        r#"{"type":"state","hostname":"a","network":{"lo":{"addresses":[{"address":"127.0.0.1","prefix":8}]}}}"#;
    [
        Frame::Open(br#"{"type":"exec","argv":["sh"],"pty":{"columns":80,"rows":24}}"#),
        Frame::Open(br#"{"type":"power","force":true}"#),
        Frame::Message(br#"{"type":"signal","signal":9}"#),
        Frame::Message(br#"{"type":"exited","status":{"signal":9}}"#),
        Frame::Message(br#"{"type":"error","kind":"command_not_found","message":"no"}"#),
        Frame::Message(state.as_bytes()),
        Frame::Data(STDOUT, b"out"),
        Frame::Data(STDIN, b"in"),
        Frame::Credit(STDIN, 1),
        Frame::End(STDERR),
        Frame::Stop(STDIN),
        Frame::Close,
    ]
    .map(|frame| {
        let mut seed = vec![9];
        encode(1, frame, &mut seed);
        seed
    })
    .into()
}
