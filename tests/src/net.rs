//! Sockets in a host's network and in the "internet" beyond it.
//!
//! A thread may enter a network namespace by itself; each of these does so in a thread of its own, which never does
//! anything else.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// Runs `work` in the network namespace that `namespace` names, such as `/proc/1/ns/net`.
pub fn inside<T: Send + 'static>(namespace: PathBuf, work: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(move || {
        let file = File::open(&namespace).unwrap_or_else(|error| panic!("{}: {error}", namespace.display()));
        setns(file, CloneFlags::CLONE_NEWNET).expect("entering a network namespace");
        work()
    })
    .join()
    .expect("a thread in another network namespace")
}

/// A server that answers each connection with one line, the caller's address as it sees it, then echoes.
#[derive(Debug)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    callers: Receiver<SocketAddr>,
}

impl Listener {
    /// Listens at a free port of `ip` in the namespace. It serves until the test's process ends.
    pub fn start(namespace: PathBuf, ip: IpAddr) -> Self {
        let listener = inside(namespace, move || TcpListener::bind((ip, 0)).expect("listening"));
        let address = listener.local_addr().expect("the listener's address");
        let (sender, callers) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if let Ok(caller) = stream.peer_addr() {
                    let _ = sender.send(caller);
                }
                thread::spawn(move || echo(stream));
            }
        });
        Self { address, callers }
    }

    /// The next caller's address as the server saw it.
    pub fn caller(&self) -> SocketAddr {
        self.callers.recv_timeout(Duration::from_secs(30)).expect("nobody called within 30 s")
    }
}

fn echo(mut stream: TcpStream) {
    let greeting = stream.peer_addr().map(|caller| format!("hello {}\n", caller.ip())).unwrap_or_default();
    let mut buffer = [0; 4096];
    if stream.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
