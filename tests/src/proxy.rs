//! Two ways out of a host's network: an HTTP proxy to the machine's, so that an image can be built from a package mirror
//! in a host that otherwise reaches nothing, and a door to the daemon's socket for programs that know TCP only.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use crate::net::inside;

/// Listens on the loopback of the given network namespace, until the test's process ends.
pub fn start(namespace: PathBuf) -> SocketAddr {
    let listener = inside(namespace, || TcpListener::bind(("127.0.0.1", 0)).expect("listening"));
    let address = listener.local_addr().expect("the listener's address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that hangs up, or a mirror that does not answer, is for the client to report.
            thread::spawn(move || serve(client));
        }
    });
    address
}

/// Listens on the loopback of the given network namespace for what is to go to a daemon's socket, until the test's process
/// ends.
pub fn to_socket(namespace: PathBuf, socket: PathBuf) -> SocketAddr {
    let listener = inside(namespace, || TcpListener::bind(("127.0.0.1", 0)).expect("listening"));
    let address = listener.local_addr().expect("the listener's address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let socket = socket.clone();
            thread::spawn(move || {
                let server = UnixStream::connect(socket)?;
                let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    to.shutdown(Shutdown::Write)
                });
                let _ = io::copy(&mut &server, &mut &client);
                client.shutdown(Shutdown::Both)
            });
        }
    });
    address
}

/// Serves one request and closes: clients that would keep the connection open open another.
fn serve(client: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let mut headers = String::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let name = header.split(':').next().unwrap_or_default().to_lowercase();
        if header.trim().is_empty() {
            break;
        }
        if !name.contains("connection") {
            headers.push_str(&header);
        }
    }
    if method == "CONNECT" {
        let server = TcpStream::connect(target)?;
        (&client).write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        return join(client, server);
    }
    let address = target.strip_prefix("http://").ok_or(io::ErrorKind::InvalidInput)?;
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let port = if host.contains(':') { "" } else { ":80" };
    let mut server = TcpStream::connect(format!("{host}{port}"))?;
    server.write_all(format!("{method} /{path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").as_bytes())?;
    io::copy(&mut server, &mut &client)?;
    client.shutdown(Shutdown::Both)
}

fn join(client: TcpStream, server: TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let upward = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        to.shutdown(Shutdown::Write)
    });
    io::copy(&mut &server, &mut &client)?;
    let _ = client.shutdown(Shutdown::Both);
    let _ = upward.join();
    Ok(())
}
