use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::protocol::{MAX_DATA, MAX_MESSAGE, STDOUT, WINDOW};

/// Two engines with a socket pair in between.
struct Pair {
    host: Engine,
    guest: Engine,
    told: Vec<Event>,
    asked: Vec<Event>,
}

impl Pair {
    fn new() -> Self {
        let (one, other) = duet_sys::socket::stream_pair().unwrap();
        let (host, guest) = (Engine::host(one, Link::Fresh, 7).unwrap(), Engine::guest(other).unwrap());
        let mut pair = Self { host, guest, told: Vec::new(), asked: Vec::new() };
        pair.settle();
        assert_eq!((&*pair.told, &*pair.asked), (&[Event::Greeted][..], &[Event::Greeted][..]));
        pair.told.clear();
        pair.asked.clear();
        pair
    }

    /// Runs both until neither can do anything.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for (engine, events) in [(&mut self.host, &mut self.told), (&mut self.guest, &mut self.asked)] {
                let ready = wait(Some(engine), &[], Some(Duration::ZERO)).unwrap();
                quiet &= ready.engine.is_empty();
                engine.progress(&ready.engine, events).unwrap();
            }
            if quiet {
                return;
            }
        }
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

#[test]
fn a_stream_that_nobody_reads_holds_up_no_other() {
    let mut pair = Pair::new();
    let (slow, fast) = (pair.host.open(b"{}").unwrap(), pair.host.open(b"{}").unwrap());
    pair.settle();
    assert_eq!(pair.asked, [Event::Opened(slow, b"{}".to_vec()), Event::Opened(fast, b"{}".to_vec())]);

    // The program of the one writes without end, and its reader does not read.
    let (zeros, unread) = (std::fs::File::open("/dev/zero").unwrap(), pipe());
    pair.guest.attach(slow, STDOUT, zeros.into()).unwrap();
    pair.host.attach(slow, STDOUT, unread.1).unwrap();
    let (from, to) = (pipe(), UnixStream::pair().unwrap());
    pair.guest.attach(fast, STDOUT, from.0).unwrap();
    pair.host.attach(fast, STDOUT, to.0.into()).unwrap();
    pair.settle();

    let (mut writer, mut reader) = (std::fs::File::from(from.1), to.1);
    for round in 0..100_u8 {
        writer.write_all(&[round; 1000]).unwrap();
        pair.settle();
        let mut got = [0; 1000];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 1000]);
    }
    drop(writer);
    pair.settle();
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the end arrives too");
    assert!(pair.guest.sending(slow) && !pair.guest.sending(fast));
}

#[test]
fn a_reader_that_goes_stops_the_writer() {
    let mut pair = Pair::new();
    let channel = pair.host.open(b"{}").unwrap();
    let (unread, to) = pipe();
    pair.host.attach(channel, STDOUT, to).unwrap();
    pair.settle();
    let (from, mut writer) = UnixStream::pair().unwrap();
    pair.guest.attach(channel, STDOUT, from.into()).unwrap();
    drop(unread);
    writer.write_all(b"x").unwrap();
    pair.settle();
    assert!(!pair.guest.sending(channel));
    assert_eq!(writer.write(b"y").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn what_was_sent_before_a_close_is_still_written() {
    let mut pair = Pair::new();
    let channel = pair.host.open(b"{}").unwrap();
    let (mut reader, to) = UnixStream::pair().unwrap();
    pair.host.attach(channel, STDOUT, to.into()).unwrap();
    pair.settle();
    let (from, mut writer) = UnixStream::pair().unwrap();
    pair.guest.attach(channel, STDOUT, from.into()).unwrap();
    writer.write_all(&[9; 5000]).unwrap();
    drop(writer);
    while pair.guest.sending(channel) {
        pair.settle();
    }
    pair.guest.close(channel);
    pair.settle();
    assert_eq!(pair.told, [Event::Closed(channel)]);
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all, [9; 5000]);
}

#[test]
fn what_is_said_is_heard_before_what_is_sent_after_it() {
    let mut pair = Pair::new();
    let channel = pair.host.open(b"{}").unwrap();
    pair.settle();
    let (mut reader, to) = UnixStream::pair().unwrap();
    reader.set_nonblocking(true).unwrap();
    pair.guest.attach(channel, 0, to.into()).unwrap();
    let mut bytes = Vec::new();
    frame::encode(channel, Frame::Message(b"{}"), &mut bytes);
    frame::encode(channel, Frame::Data(0, b"x"), &mut bytes);
    frame::encode(channel, Frame::End(0), &mut bytes);
    let mut events = Vec::new();
    pair.guest.feed(&bytes, &mut events).unwrap();
    assert_eq!(events, [Event::Message(channel, b"{}".to_vec())]);
    assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    pair.settle();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"x");
}

#[test]
fn channels_are_limited_and_given_back() {
    let mut pair = Pair::new();
    let channels: Vec<_> = (0..MAX_CHANNELS).map(|_| pair.host.open(b"{}").unwrap()).collect();
    assert_eq!(pair.host.open(b"{}"), None);
    pair.settle();
    for channel in channels {
        pair.guest.close(channel);
    }
    pair.settle();
    assert!(pair.host.open(b"{}").is_some());
}

#[test]
fn a_program_that_does_not_read_keeps_no_channel() {
    let mut pair = Pair::new();
    let kept: Vec<_> = (0..MAX_CHANNELS * 2)
        .map(|_| {
            let channel = pair.host.open(b"{}").unwrap();
            pair.settle();
            let (unread, to) = pipe();
            pair.guest.attach(channel, 0, to).unwrap();
            pair.host.attach(channel, 0, File::open("/dev/zero").unwrap().into()).unwrap();
            pair.settle();
            pair.host.close(channel);
            pair.settle();
            unread
        })
        .collect();
    assert_eq!(kept.len(), MAX_CHANNELS * 2);
    assert!(pair.guest.channels.is_empty() && pair.host.channels.is_empty());
}

#[test]
fn a_port_with_the_rest_of_another_client_is_found_into() {
    let (old, port) = UnixStream::pair().unwrap();
    let (new, theirs) = duet_sys::socket::stream_pair().unwrap();
    let mut guest = Engine::guest(port.into()).unwrap();
    let mut events = Vec::new();
    let mut both = |guest: &mut Engine, bytes: &[u8]| {
        guest.feed(bytes, &mut events).unwrap();
        std::mem::take(&mut events)
    };
    assert_eq!(both(&mut guest, &Hello::ours(1).encode()), [Event::Greeted]);
    // A client that dies in the middle of its longest message.
    let mut rest = Vec::new();
    frame::encode(1, Frame::Open(b"{}"), &mut rest);
    frame::encode(1, Frame::Message(&vec![b' '; MAX_MESSAGE]), &mut rest);
    rest.truncate(frame::HEADER + 2 + frame::HEADER + 1);
    assert_eq!(both(&mut guest, &rest), [Event::Opened(1, b"{}".to_vec())]);
    drop(old);

    let mut host = Engine::host(new, Link::Shared, 2).unwrap();
    let mut sent = Vec::new();
    let mut theirs = UnixStream::from(theirs);
    theirs.set_nonblocking(true).unwrap();
    while !host.flushed() {
        host.progress(&[], &mut Vec::new()).unwrap();
        let _ = theirs.read_to_end(&mut sent);
    }
    let heard: Vec<Event> = sent.chunks(1000).flat_map(|piece| both(&mut guest, piece)).collect();
    assert_eq!(heard.last(), Some(&Event::Greeted));
    assert!(heard.contains(&Event::Reset));

    // And the host passes over what the guest had half said, and over its answer to the other client.
    let mut told = Vec::new();
    host.feed(b"\x01\0\0\0\x03\xff\0\0rest", &mut told).unwrap();
    host.feed(&Hello::ours(1).encode(), &mut told).unwrap();
    assert!(!host.greeted());
    host.feed(&Hello::ours(2).encode(), &mut told).unwrap();
    assert_eq!(told, [Event::Greeted]);
}

/// A host's end with one channel, greeted.
fn hostage() -> (Engine, u32, UnixStream) {
    let (one, other) = duet_sys::socket::stream_pair().unwrap();
    let mut host = Engine::host(one, Link::Fresh, 7).unwrap();
    host.feed(&Hello::ours(7).encode(), &mut Vec::new()).unwrap();
    let channel = host.open(b"{}").unwrap();
    (host, channel, other.into())
}

#[test]
fn a_hostile_guest_loses_its_connection() {
    let full = [0; MAX_DATA];
    let attacks: [(&str, Vec<Frame<'_>>, Violation); 6] = [
        ("more than the window", vec![Frame::Data(1, &full); WINDOW / MAX_DATA + 1], Violation::Window),
        ("after the end", vec![Frame::End(1), Frame::Data(1, b"x")], Violation::Window),
        ("the wrong way", vec![Frame::Data(0, b"x")], Violation::Stream(0)),
        ("room in a stream of its own", vec![Frame::Credit(1, 5)], Violation::Stream(1)),
        ("opens", vec![Frame::Open(b"{}")], Violation::Channel),
        ("stops a stream of its own", vec![Frame::Stop(2)], Violation::Stream(2)),
    ];
    for (what, frames, expected) in attacks {
        let (mut host, channel, _guest) = hostage();
        let mut bytes = Vec::new();
        frames.into_iter().for_each(|frame| frame::encode(channel, frame, &mut bytes));
        match host.feed(&bytes, &mut Vec::new()) {
            Err(Lost::Violation(violation)) => assert_eq!(violation, expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let (mut host, channel, _guest) = hostage();
    host.attach(channel, 0, std::fs::File::open("/dev/null").unwrap().into()).unwrap();
    let mut bytes = Vec::new();
    frame::encode(channel, Frame::Credit(0, 1), &mut bytes);
    assert!(matches!(host.feed(&bytes, &mut Vec::new()), Err(Lost::Violation(Violation::Window))));
}

fn some_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = 0_u8..3;
    let bytes = prop::collection::vec(any::<u8>(), 1..300);
    prop_oneof![
        (stream.clone(), bytes.clone()).prop_map(|(stream, bytes)| encoded(Frame::Data(stream, &bytes))),
        bytes.clone().prop_map(|bytes| encoded(Frame::Message(&[&b"{}"[..], &bytes].concat()))),
        (stream.clone(), any::<u32>()).prop_map(|(stream, bytes)| encoded(Frame::Credit(stream, bytes))),
        stream.clone().prop_map(|stream| encoded(Frame::End(stream))),
        stream.prop_map(|stream| encoded(Frame::Stop(stream))),
        Just(encoded(Frame::Close)),
        Just(encoded(Frame::Open(b"{}"))),
        bytes,
    ]
}

fn encoded(frame: Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(1, frame, &mut out);
    out
}

proptest! {
    /// Whatever comes, neither end panics, and what is kept stays within its bounds.
    #[test]
    fn anything_can_come(frames in prop::collection::vec(some_frame(), 0..60), piece in 1_usize..5000) {
        let bytes = frames.concat();
        let (mut host, channel, _guest) = hostage();
        let sink = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        host.attach(channel, STDOUT, sink.into()).unwrap();
        let (one, _other) = duet_sys::socket::stream_pair().unwrap();
        let mut guest = Engine::guest(one).unwrap();
        guest.feed(&Hello::ours(1).encode(), &mut Vec::new()).unwrap();
        let mut events = Vec::new();
        for piece in bytes.chunks(piece) {
            prop_assert!(guest.feed(piece, &mut events).is_ok());
            prop_assert!(guest.inbox.len() <= MAX_FRAME);
        }
        for piece in bytes.chunks(piece) {
            if host.feed(piece, &mut events).is_err() {
                break;
            }
            prop_assert!(host.inbox.len() <= MAX_FRAME);
        }
    }

    /// Bytes arrive as they were sent, in order and to the last, whatever the sizes of reads and writes.
    #[test]
    fn streams_carry_everything(writes in prop::collection::vec(1_usize..60_000, 1..12)) {
        let mut pair = Pair::new();
        let channel = pair.host.open(b"{}").unwrap();
        pair.settle();
        let (from, mut writer) = UnixStream::pair().unwrap();
        let (mut reader, to) = UnixStream::pair().unwrap();
        pair.guest.attach(channel, STDOUT, from.into()).unwrap();
        pair.host.attach(channel, STDOUT, to.into()).unwrap();
        reader.set_nonblocking(true).unwrap();
        writer.set_nonblocking(true).unwrap();
        let sent: Vec<u8> = (0..writes.iter().sum::<usize>()).map(|at| (at / 7 + at % 251) as u8).collect();
        let (mut at, mut got) = (0, Vec::new());
        let mut sizes = writes.iter().cycle();
        while got.len() < sent.len() {
            let size = (*sizes.next().unwrap()).min(sent.len() - at);
            at += writer.write(&sent[at..at + size]).unwrap_or(0);
            pair.settle();
            let _ = reader.read_to_end(&mut got);
        }
        prop_assert_eq!(got, sent);
    }
}

#[test]
fn a_stream_that_is_finished_ends_with_what_is_there() {
    let mut pair = Pair::new();
    let channel = pair.host.open(b"{}").unwrap();
    pair.settle();
    // More than a window, from one who keeps the stream open: what is there now comes, and then the end.
    let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    rustix::pipe::fcntl_setpipe_size(&to, 1 << 20).unwrap();
    assert_eq!(rustix::io::write(&to, &vec![7; 1 << 20]).unwrap(), 1 << 20);
    pair.guest.attach(channel, STDOUT, from).unwrap();
    pair.guest.finish(channel);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    pair.host.attach(channel, STDOUT, theirs.into()).unwrap();
    let (mut got, mut piece) = (0, vec![0; 1 << 16]);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        pair.settle();
        match ours.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(std::time::Instant::now() < deadline, "it does not end");
    }
    assert_eq!(got, 1 << 20);
    assert!(!pair.guest.sending(channel));
    drop(to);
}
