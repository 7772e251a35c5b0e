//! The engine that both sides run: it moves bytes between descriptors and the streams of channels, over one transport.
//!
//! It does no waiting of its own. Whoever runs it asks what it is interested in ([`wait`]), hands back what is ready
//! ([`Engine::progress`]), and gets [`Event`]s. Nothing in it blocks: every descriptor is non-blocking.
//!
//! What it keeps is bounded, whatever the other side does: [`WINDOW`] bytes for each incoming stream, one unfinished frame,
//! and an outbox that takes nothing more from local descriptors while it is full.

mod outbox;
mod stream;
mod wait;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::protocol::frame::{self, Frame, MAX_FRAME};
use crate::protocol::hello::{self, Hello};
use crate::protocol::{MAX_CHANNELS, STDERR, STDIN, VERSION, Violation};
use outbox::{Outbox, Taken};
use stream::{Incoming, Outgoing};
pub use wait::{Ready, wait};

#[cfg(doc)]
use crate::protocol::WINDOW;

/// How much is read from the transport at once, in bytes.
const PIECE: usize = 64 * 1024;

/// What became of a connection.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The other side closed it.
    #[error("the connection ended")]
    Ended,
    /// What came from it was not right.
    #[error("the other side broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The transport failed.
    #[error("the connection failed: {0}")]
    Failed(io::Error),
}

/// Whether somebody else's bytes can be in the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A connection made for this client.
    Fresh,
    /// A port that outlives its users.
    Shared,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The two sides have greeted each other; channels can be opened.
    Greeted,
    /// Guest only: the client is gone and with it all channels. Another greets, or will.
    Reset,
    /// Guest only: a channel was opened with this request.
    Opened(u32, Vec<u8>),
    /// A message of a channel.
    Message(u32, Vec<u8>),
    /// The other side has closed a channel. What came before is still written to its descriptors.
    Closed(u32),
}

/// What a poll is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The transport.
    Transport,
    /// The descriptor of a stream that is sent.
    Outgoing(u32, u8),
    /// The descriptor of a stream that is received.
    Incoming(u32, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Host { nonce: u64 },
    Guest,
}

impl Side {
    fn sends(self, stream: u8) -> bool {
        matches!(self, Self::Host { .. }) == (stream == STDIN)
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Engine {
    side: Side,
    transport: OwnedFd,
    inbox: Vec<u8>,
    outbox: Outbox,
    greeted: bool,
    channels: BTreeMap<u32, Channel>,
    /// No channel from this number on was open yet.
    next: u32,
    /// Whose turn it is to be served first.
    turn: usize,
}

#[derive(Debug)]
struct Channel {
    incoming: [Option<Incoming>; 3],
    outgoing: [Option<Outgoing>; 3],
    /// The other side has closed it; it stays until what came is written.
    closing: bool,
    /// The turn in which it last said something. What it sends after that is not written before that was heard, so that
    /// who resizes a terminal and then types sees it resized.
    spoke: Option<usize>,
}

impl Channel {
    fn new(side: Side) -> Self {
        let incoming = [0, 1, 2].map(|stream| (!side.sends(stream)).then(Incoming::new));
        Self { incoming, outgoing: [None, None, None], closing: false, spoke: None }
    }
}

impl Engine {
    /// The guest's end, which waits for a greeting.
    ///
    /// # Errors
    /// As fcntl(2): the transport is made non-blocking.
    pub fn guest(transport: OwnedFd) -> io::Result<Self> {
        Self::new(Side::Guest, transport)
    }

    /// The host's end, which greets. `nonce` must be another one for each connection.
    ///
    /// # Errors
    /// As fcntl(2): the transport is made non-blocking.
    pub fn host(transport: OwnedFd, link: Link, nonce: u64) -> io::Result<Self> {
        let mut engine = Self::new(Side::Host { nonce }, transport)?;
        if link == Link::Shared {
            engine.outbox.bytes(&vec![0; MAX_FRAME + frame::HEADER]);
        }
        engine.outbox.bytes(&Hello::ours(nonce).encode());
        Ok(engine)
    }

    fn new(side: Side, transport: OwnedFd) -> io::Result<Self> {
        duet_sys::socket::set_nonblocking(&transport, true)?;
        Ok(Self {
            side,
            transport,
            inbox: Vec::new(),
            outbox: Outbox::default(),
            greeted: false,
            channels: BTreeMap::new(),
            next: 1,
            turn: 0,
        })
    }

    /// The transport, to look at.
    #[must_use]
    pub fn transport(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }

    /// Gives the transport back; all channels end.
    #[must_use]
    pub fn into_transport(self) -> OwnedFd {
        self.transport
    }

    /// Whether channels can be opened.
    #[must_use]
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Whether all that was said is on its way.
    #[must_use]
    pub fn flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Host: opens a channel with a request; `None` if too many are open.
    pub fn open(&mut self, request: &[u8]) -> Option<u32> {
        if self.channels.len() >= MAX_CHANNELS || self.next == u32::MAX {
            return None;
        }
        let channel = self.next;
        self.next += 1;
        self.channels.insert(channel, Channel::new(self.side));
        self.outbox.frame(channel, Frame::Open(request));
        Some(channel)
    }

    /// Says something on a channel.
    pub fn message(&mut self, channel: u32, message: &[u8]) {
        self.outbox.frame(channel, Frame::Message(message));
    }

    /// Connects a descriptor with a stream of a channel: it is read and sent, or written with what comes, as the stream
    /// goes. The descriptor, and whoever shares its open file description, becomes non-blocking.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn attach(&mut self, channel: u32, stream: u8, fd: OwnedFd) -> io::Result<()> {
        duet_sys::socket::set_nonblocking(&fd, true)?;
        let sends = self.side.sends(stream);
        let Some(streams) = self.channels.get_mut(&channel) else { return Ok(()) };
        let at = usize::from(stream.min(STDERR));
        if sends {
            streams.outgoing[at] = Some(Outgoing::new(fd));
        } else if let Some(incoming) = &mut streams.incoming[at] {
            incoming.attach(fd);
            self.drain(channel, stream);
        }
        Ok(())
    }

    /// Whether a channel still has a stream to send.
    #[must_use]
    pub fn sending(&self, channel: u32) -> bool {
        self.channels.get(&channel).is_some_and(|channel| channel.outgoing.iter().any(Option::is_some))
    }

    /// Ends the streams that a channel sends once all is sent that can be read from them now: whoever wrote to them has
    /// ended, and others who hold them open are not waited for.
    pub fn finish(&mut self, channel: u32) {
        let Some(channel) = self.channels.get_mut(&channel) else { return };
        channel.outgoing.iter_mut().flatten().for_each(|outgoing| outgoing.last = true);
        self.send_last();
    }

    /// Goes on with what [`Self::finish`] began.
    fn send_last(&mut self) {
        let streams = self.channels.iter().flat_map(|(number, channel)| {
            let last = channel.outgoing.iter().zip(0u8..).filter(|(slot, _)| slot.as_ref().is_some_and(|one| one.last));
            last.map(|(_, stream)| (*number, stream))
        });
        for (number, stream) in streams.collect::<Vec<_>>() {
            self.send_rest(number, stream);
        }
    }

    fn send_rest(&mut self, number: u32, stream: u8) {
        let slot = |engine: &Self| Some(engine.channels.get(&number)?.outgoing[usize::from(stream)].as_ref()?.credit);
        while let Some(credit) = slot(self) {
            let Some(channel) = self.channels.get_mut(&number) else { return };
            let outgoing = &mut channel.outgoing[usize::from(stream)];
            let more = outgoing.as_ref().is_some_and(|one| {
                let mut poll = [rustix::event::PollFd::new(&one.fd, PollFlags::IN)];
                rustix::event::poll(&mut poll, Some(&rustix::event::Timespec::default())).is_ok()
                    && poll[0].revents().contains(PollFlags::IN)
            });
            if !more {
                *outgoing = None;
                self.outbox.frame(number, Frame::End(stream));
                return;
            }
            if credit == 0 || self.outbox.is_full() {
                return;
            }
            self.send(number, stream);
        }
    }

    /// Closes a channel, now.
    pub fn close(&mut self, channel: u32) {
        if let Some(streams) = self.channels.remove(&channel)
            && !streams.closing
        {
            self.outbox.frame(channel, Frame::Close);
        }
    }

    /// What to wait for.
    #[must_use]
    pub fn interests(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.outbox.is_empty());
        let mut all = vec![(Source::Transport, self.transport.as_fd(), flags)];
        for (&number, channel) in &self.channels {
            for stream in 0..=STDERR {
                let at = usize::from(stream);
                if let Some(fd) = channel.incoming[at].as_ref().and_then(Incoming::waits_for) {
                    all.push((Source::Incoming(number, stream), fd, PollFlags::OUT));
                }
                if let Some(outgoing) = &channel.outgoing[at]
                    && outgoing.credit > 0
                    && !self.outbox.is_full()
                {
                    all.push((Source::Outgoing(number, stream), outgoing.fd.as_fd(), PollFlags::IN));
                }
            }
        }
        all
    }

    /// Does what can be done without waiting.
    ///
    /// # Errors
    /// [`Lost`]: the connection is of no more use. For a guest's end a violation is none: it looks for the next greeting.
    pub fn progress(&mut self, ready: &[Source], events: &mut Vec<Event>) -> Result<(), Lost> {
        let turn = self.turn % ready.len().max(1);
        self.turn = self.turn.wrapping_add(1);
        for &source in ready[turn..].iter().chain(&ready[..turn]) {
            match source {
                Source::Transport => self.receive(events)?,
                Source::Incoming(channel, stream) => self.drain(channel, stream),
                Source::Outgoing(channel, stream) => self.send(channel, stream),
            }
        }
        self.outbox.flush(&self.transport)?;
        // There may be room again.
        self.send_last();
        self.outbox.flush(&self.transport)?;
        if self.outbox.is_overfull() {
            self.violated(Violation::Backlog, events)?;
        }
        Ok(())
    }

    /// Reads once from the transport.
    fn receive(&mut self, events: &mut Vec<Event>) -> Result<(), Lost> {
        let mut piece = [0; PIECE];
        match rustix::io::read(&self.transport, &mut piece) {
            Ok(0) => Err(Lost::Ended),
            Ok(length) => self.feed(&piece[..length], events),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(Errno::CONNRESET | Errno::PIPE) => Err(Lost::Ended),
            Err(errno) => Err(Lost::Failed(errno.into())),
        }
    }

    /// Takes bytes that came over the transport.
    ///
    /// # Errors
    /// As [`Self::progress`].
    pub fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Lost> {
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            if !self.greeted {
                let (used, hello) = hello::find(&inbox[at..]);
                at += used;
                match hello {
                    Some(hello) => self.greet(hello, events)?,
                    None => break,
                }
                continue;
            }
            let taken = match frame::decode(&inbox[at..]) {
                Ok(Some((used, channel, frame))) => self.take(channel, frame, events).map(|()| used),
                Ok(None) => break,
                Err(violation) => Err(violation),
            };
            match taken {
                Ok(used) => at += used,
                Err(violation) => self.violated(violation, events)?,
            }
        }
        inbox.drain(..at);
        inbox.shrink_to(PIECE);
        self.inbox = inbox;
        Ok(())
    }

    fn greet(&mut self, hello: Hello, events: &mut Vec<Event>) -> Result<(), Violation> {
        match self.side {
            Side::Host { nonce } if hello.nonce != nonce => Ok(()),
            Side::Host { .. } if (crate::protocol::OLDEST..=VERSION).contains(&hello.version) => {
                self.greeted = true;
                events.push(Event::Greeted);
                Ok(())
            }
            Side::Host { .. } => Err(Violation::Version(hello.version)),
            Side::Guest => {
                let (answer, fits) = hello.answer();
                self.outbox.bytes(&answer.encode());
                if fits {
                    self.greeted = true;
                    self.next = 1;
                    events.push(Event::Greeted);
                }
                Ok(())
            }
        }
    }

    /// The other side is not to be understood. A host gives up; a guest has a new client, or will.
    fn violated(&mut self, violation: Violation, events: &mut Vec<Event>) -> Result<(), Violation> {
        if self.side != Side::Guest {
            return Err(violation);
        }
        self.greeted = false;
        self.channels.clear();
        self.outbox = Outbox::default();
        events.push(Event::Reset);
        Ok(())
    }

    fn take(&mut self, number: u32, frame: Frame<'_>, events: &mut Vec<Event>) -> Result<(), Violation> {
        if let Frame::Open(request) = frame {
            if self.side != Side::Guest || number < self.next || self.channels.len() >= MAX_CHANNELS {
                return Err(Violation::Channel);
            }
            self.next = number.saturating_add(1);
            self.channels.insert(number, Channel::new(self.side));
            events.push(Event::Opened(number, request.to_vec()));
            return Ok(());
        }
        // What crosses a close on its way is late, not wrong.
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| !channel.closing) else { return Ok(()) };
        match frame {
            Frame::Open(_) => {}
            Frame::Message(message) => {
                channel.spoke = Some(self.turn);
                events.push(Event::Message(number, message.to_vec()));
            }
            Frame::Data(stream, bytes) => {
                let incoming = channel.incoming[usize::from(stream)].as_mut().ok_or(Violation::Stream(stream))?;
                incoming.take(bytes)?;
                if channel.spoke != Some(self.turn) {
                    self.drain(number, stream);
                }
            }
            Frame::End(stream) => {
                let incoming = channel.incoming[usize::from(stream)].as_mut().ok_or(Violation::Stream(stream))?;
                incoming.end();
                if channel.spoke != Some(self.turn) || incoming.drained() {
                    self.drain(number, stream);
                }
            }
            Frame::Credit(stream, bytes) => {
                if !self.side.sends(stream) {
                    return Err(Violation::Stream(stream));
                }
                if let Some(outgoing) = &mut channel.outgoing[usize::from(stream)] {
                    outgoing.grant(bytes)?;
                }
            }
            Frame::Stop(stream) => {
                if !self.side.sends(stream) {
                    return Err(Violation::Stream(stream));
                }
                if channel.outgoing[usize::from(stream)].take().is_some() {
                    self.outbox.frame(number, Frame::End(stream));
                }
            }
            // Nobody is left who would have what is still to be written to a program.
            Frame::Close if self.side == Side::Guest => {
                self.channels.remove(&number);
                events.push(Event::Closed(number));
            }
            Frame::Close => {
                channel.closing = true;
                channel.outgoing = [None, None, None];
                channel.incoming.iter_mut().flatten().for_each(Incoming::close);
                events.push(Event::Closed(number));
                self.retire(number);
            }
        }
        Ok(())
    }

    /// Writes what has come of a stream, as far as its descriptor takes it, and makes room for more.
    fn drain(&mut self, number: u32, stream: u8) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let Some(incoming) = &mut channel.incoming[usize::from(stream)] else { return };
        let broken = incoming.write();
        if channel.closing {
            self.retire(number);
            return;
        }
        if broken && !incoming.ended() {
            self.outbox.frame(number, Frame::Stop(stream));
        }
        if let Some(credit) = incoming.credit() {
            self.outbox.frame(number, Frame::Credit(stream, credit));
        }
    }

    /// Forgets a closed channel once all that came is written.
    fn retire(&mut self, number: u32) {
        let drained = |channel: &Channel| channel.incoming.iter().flatten().all(Incoming::drained);
        if self.channels.get(&number).is_some_and(|channel| channel.closing && drained(channel)) {
            self.channels.remove(&number);
        }
    }

    /// Sends what one read of a stream's descriptor gives.
    fn send(&mut self, number: u32, stream: u8) {
        let Some(slot) = self.channels.get_mut(&number).map(|channel| &mut channel.outgoing[usize::from(stream)])
        else {
            return;
        };
        let Some(outgoing) = slot else { return };
        if self.outbox.is_full() {
            return;
        }
        match self.outbox.data(number, stream, &outgoing.fd, outgoing.credit) {
            Taken::Bytes(count) => outgoing.credit -= count,
            Taken::Nothing => {}
            Taken::End => {
                *slot = None;
                self.outbox.frame(number, Frame::End(stream));
            }
        }
    }
}

#[cfg(test)]
mod tests;
