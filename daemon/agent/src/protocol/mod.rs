//! What the host and a guest's agent say to each other, over one reliable byte stream.
//!
//! The stream is a vsock connection, or a virtio-serial port. Of the latter there is one only, and it outlives those who
//! use it: what a client that is gone had half written is still in it. Hence:
//!
//! ```text
//!  host                                              guest
//!  zeros (a port only), Hello {nonce}  ───────────>  throws away all until a Hello
//!  throws away all until a Hello with its nonce <──  Hello {the same nonce, the version that both speak}
//!  Frame, Frame, ...  <───────────────────────────>  Frame, Frame, ...
//! ```
//!
//! The zeros are longer than any frame, so that the rest of an unfinished one is filled up; what follows is no frame, and
//! the guest goes back to looking for a hello.
//!
//! After that, everything is a [`frame`] of a channel. The host opens channels, each with one [`message::Request`]; a
//! channel carries [`message`]s and up to three streams of bytes, standard input, output and error. Each stream has a
//! window of its own ([`WINDOW`]): its sender sends only what its receiver has room for, so that a stream that nobody reads
//! holds up no other.
//!
//! Whatever comes from a guest is hostile: every length is bounded before anything is kept, and a violation ends the
//! connection.

pub mod frame;
pub mod hello;
pub mod message;

/// The version that this crate speaks. It changes when an old peer would misunderstand.
pub const VERSION: u16 = 1;
/// The oldest version that this crate understands.
pub const OLDEST: u16 = 1;

/// The vsock port on which an agent listens ("DUET" in ASCII); above 1023, below which Linux keeps ports for root.
pub const VSOCK_PORT: u32 = 0x4455_4554;
/// The name of the virtio-serial port.
pub const SERIAL_PORT: &str = "org.duet.agent";

/// The most bytes of a message or request, in JSON.
pub const MAX_MESSAGE: usize = 192 * 1024;
/// The most bytes of a stream in one frame. Small, so that no stream keeps the others waiting for long.
pub const MAX_DATA: usize = 32 * 1024;
/// How many bytes of a stream may be under way before its receiver says that it has room for more.
pub const WINDOW: usize = 128 * 1024;
/// The most channels that may be open at once.
pub const MAX_CHANNELS: usize = 128;

/// Standard input: from the host to the guest. With a terminal, what is typed.
pub const STDIN: u8 = 0;
/// Standard output: from the guest to the host. With a terminal, what it shows.
pub const STDOUT: u8 = 1;
/// Standard error: from the guest to the host.
pub const STDERR: u8 = 2;

/// Why what was received cannot have been sent by an agent or a client of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The header's kind is none.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// The length does not fit the kind.
    #[error("a frame of kind {kind} with {length} bytes")]
    Length {
        /// The frame's kind.
        kind: u8,
        /// The length that its header gives.
        length: usize,
    },
    /// The stream is none, or goes in the other direction.
    #[error("a frame about stream {0}, which does not go that way")]
    Stream(u8),
    /// More was sent than the window allows, or after the stream's end.
    #[error("more bytes of a stream than there was room for")]
    Window,
    /// A channel was opened that is open already, or too many, or by the guest.
    #[error("a channel was opened that cannot be")]
    Channel,
    /// More is to be sent than the other side ever takes.
    #[error("it does not take what it asked for")]
    Backlog,
    /// The two sides have no version in common.
    #[error("it speaks version {0} of the protocol, which is not known here")]
    Version(u16),
}
