//! What can go wrong between the client and the daemon, in sentences for people.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket is not there.
    #[error(
        "no daemon answers at {}: there is no such socket; start it with \"systemctl start duetd\" (or run \"duetd\"), \
         or name its directory with --dir or DUET_DIR", .0.display()
    )]
    NoSocket(PathBuf),
    /// The socket is there but nobody listens.
    #[error(
        "no daemon answers at {}: nobody listens on the socket; start it with \"systemctl start duetd\" (or run \
         \"duetd\")", .0.display()
    )]
    NotRunning(PathBuf),
    /// The socket may not be used by this user.
    #[error("you may not use {}; run this as root (with sudo, say)", .0.display())]
    NotAllowed(PathBuf),
    /// The socket cannot be connected to for another reason.
    #[error("cannot connect to {}: {source}", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke during {request}: {source}")]
    Broken {
        /// The method and path.
        request: String,
        /// What the HTTP library said.
        source: hyper::Error,
    },
    /// The daemon refused; this is its own sentence.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        code: StatusCode,
        /// Why.
        message: String,
    },
    /// A background operation failed; this is its own sentence.
    #[error("{message}")]
    Failed {
        /// What the operation was, such as "Creating instance".
        description: String,
        /// Why it failed.
        message: String,
        /// Whether it was cancelled.
        cancelled: bool,
    },
    /// The daemon answered with something that is not its API.
    #[error("the daemon's answer to {request} cannot be understood: {detail}")]
    Garbled {
        /// The method and path.
        request: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A websocket could not be made or broke.
    #[error("the websocket {path} failed: {source}")]
    WebSocket {
        /// The path.
        path: String,
        /// What the websocket library said.
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// A local file could not be read or written.
    #[error("{action} {}: {source}", .path.display())]
    Local {
        /// What was being done, such as "cannot read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The HTTP status of a refusal.
    pub fn code(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True when the daemon says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(StatusCode::NOT_FOUND)
    }

    /// True when nobody answers on the socket.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::NoSocket(_) | Self::NotRunning(_))
    }

    pub(super) fn connect(socket: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::NoSocket(socket),
            io::ErrorKind::ConnectionRefused => Self::NotRunning(socket),
            io::ErrorKind::PermissionDenied => Self::NotAllowed(socket),
            _ => Self::Connect { socket, source },
        }
    }
}
