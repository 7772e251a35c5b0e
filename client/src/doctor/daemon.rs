//! The daemon and its helper.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::programs::{find, is_program};
use super::{Check, Options, said};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_millis(700);

pub(super) fn checks(options: &Options) -> Vec<Check> {
    vec![api(&options.dir.join("unix.socket")), monitor()]
}

fn api(socket: &Path) -> Check {
    const NAME: &str = "daemon";
    const START: &str = "systemctl start duetd (or run duetd)";
    match ask(socket) {
        Ok(status) if status == "HTTP/1.1 200 OK" => Check::ok(NAME, format!("answers on {}", socket.display())),
        Ok(status) => {
            Check::fail(NAME, format!("answers on {} with {status:?}", socket.display()), "systemctl restart duetd")
        }
        Err(error) => match error.kind() {
            ErrorKind::NotFound => {
                Check::warn(NAME, format!("is not running ({} does not exist)", socket.display()), START)
            }
            ErrorKind::ConnectionRefused => {
                Check::warn(NAME, format!("is not running (nobody answers on {})", socket.display()), START)
            }
            ErrorKind::PermissionDenied => {
                Check::warn(NAME, format!("{} may not be opened by this user", socket.display()), "sudo duet doctor")
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Check::fail(
                NAME,
                format!("does not answer on {} within {} ms", socket.display(), PATIENCE.as_millis()),
                "look at its log (journalctl -u duetd), then systemctl restart duetd; instances go on running",
            ),
            _ => Check::fail(NAME, format!("cannot be asked on {}: {}", socket.display(), said(error)), START),
        },
    }
}

/// Asks for `GET /1.0` and returns the status line.
fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /1.0 HTTP/1.1\r\nHost: duet\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    // No status line is longer than a few pieces; whoever sends more is no daemon of ours.
    while !answer.contains(&b'\n') && answer.len() < 4096 {
        match stream.read(&mut piece)? {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    Ok(text.lines().next().unwrap_or_default().trim_end().to_owned())
}

/// The monitor is looked for beside this program, as all three are installed together, and on PATH.
fn monitor() -> Check {
    const NAME: &str = "duet-monitor";
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(NAME)));
    let beside: Option<PathBuf> = beside.filter(|file| is_program(file));
    match beside.or_else(|| find(NAME)) {
        Some(program) => Check::ok(NAME, format!("at {}", program.display())),
        None => Check::fail(
            NAME,
            "is not installed beside this program or on PATH; no container can start without it",
            "sudo make install",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::Status;
    use super::*;

    fn answered_with(answer: &'static [u8]) -> Check {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("unix.socket");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let count = stream.read(&mut request).unwrap();
                assert!(request[..count].starts_with(b"GET /1.0 HTTP/1.1\r\n"));
                stream.write_all(answer).unwrap();
            });
            api(&socket)
        })
    }

    #[test]
    fn a_daemon_is_told_from_what_is_none() {
        assert_eq!(answered_with(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").status, Status::Ok);
        assert_eq!(answered_with(b"HTTP/1.1 500 Internal Server Error\r\n\r\n").status, Status::Fail);
        assert_eq!(answered_with(b"").status, Status::Fail);
        assert_eq!(api(Path::new("/nonexistent/unix.socket")).status, Status::Warn);
    }

    #[test]
    fn a_socket_that_nobody_holds_is_a_daemon_that_is_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("unix.socket");
        drop(UnixListener::bind(&socket).unwrap());
        let check = api(&socket);
        assert_eq!(check.status, Status::Warn);
        assert!(check.message.contains("nobody answers"), "{check:?}");
    }
}
