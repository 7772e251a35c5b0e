//! The packets between the daemon and a container's monitor, in both directions.

use std::fmt::Debug;

use duet_container::handshake::{HandshakeEvent, HandshakeRequest};
use duet_control::protocol::{self, ExitRecord, Reply, encode, parse, parse_request};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::assert_sentence;

/// Takes a packet.
pub fn run(data: &[u8]) {
    for fds in [0, 1, 3] {
        match parse_request(data, fds) {
            Ok(request) => {
                assert_eq!(parse_request(&encode(&request), fds).expect("what was written is read"), request)
            }
            Err(error) => assert_sentence(&error.to_string()),
        }
    }
    if let Some(HandshakeRequest::Start { spec }) = message("handshake request", data)
        && let Err(error) = spec.check(0)
    {
        assert_sentence(&error.to_string());
    }
    message::<HandshakeEvent>("handshake event", data);
    message::<Reply>("reply", data);
    message::<ExitRecord>("exit record", data);
}

/// Reads a message; what was read is written and read again as the same.
fn message<T: DeserializeOwned + Serialize + PartialEq + Debug>(what: &'static str, data: &[u8]) -> Option<T> {
    let message = parse::<T>(what, data).ok()?;
    let written = encode(&message);
    if written.len() <= protocol::MAX_PACKET {
        assert_eq!(parse::<T>(what, &written).expect("what was written is read"), message);
    }
    Some(message)
}

/// A packet of each kind, as the programs themselves write them.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"type":"status"}"#,
        r#"{"type":"exec","argv":["sh","-c","true"],"environment":{"A":"b"},"cwd":"/root","uid":1,"gid":2,"pty":{"columns":80,"rows":24}}"#,
        r#"{"type":"exec_signal","signal":15}"#,
        r#"{"type":"console","force":true}"#,
        r#"{"type":"console_resize","columns":80,"rows":24}"#,
        r#"{"type":"stop"}"#,
        r#"{"type":"attach_mount","source":{"fd":0},"target":"/mnt","kind":"directory"}"#,
        r#"{"type":"attach_device","path":"/dev/fuse","major":10,"minor":229,"mode":438}"#,
        r#"{"type":"detach_device","target":"/dev/fuse"}"#,
        r#"{"type":"watch"}"#,
        r#"{"type":"created","init_pid":7}"#,
        r#"{"type":"failed","step":"mount","error":"No such file"}"#,
        r#"{"type":"exec_exited","status":{"exited":{"code":3}}}"#,
        r#"{"type":"exited","reason":{"kind":"reboot"},"at":1700000000.5}"#,
        r#"{"type":"error","kind":"invalid","message":"no"}"#,
    ];
    let mut seeds: Vec<Vec<u8>> = texts.map(Into::into).into();
    let root = duet_container::rootfs::RootSource::Directory { path: "/tmp/root".into() };
    let spec = duet_container::spec::ContainerSpec::new("c1", "/run/1".as_ref(), "/log".as_ref(), root, None);
    seeds.push(encode(&HandshakeRequest::Start { spec: Box::new(spec) }));
    seeds.push(encode(&HandshakeRequest::Go));
    seeds
}
