//! The packets of the rooted file service, in both directions.

use duet_container::files::protocol::{Request, Response, Setup};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Takes a packet's head.
pub fn run(data: &[u8]) {
    message::<Setup>(data);
    message::<Request>(data);
    message::<Response>(data);
}

/// Reads a message; what is written of it is read again as what is written the same.
fn message<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(data) else { return };
    let written = serde_json::to_vec(&message).expect("messages can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("messages can be written"), written);
}

/// A packet of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"version":1,"subject":{"running":{"pid":7,"user_namespace":true}},"id_limit":65536}"#,
        r#"{"version":1,"subject":"root"}"#,
        r#"{"id":1,"op":{"open":{"path":"/etc/passwd","flags":{"read":true},"mode":420}}}"#,
        r#"{"id":2,"op":{"read":{"handle":1,"offset":0,"length":4096}}}"#,
        r#"{"id":3,"op":{"stat":{"path":[255,47],"follow":false}}}"#,
        r#"{"id":4,"op":{"make_dir":{"path":"a","mode":493,"owner":{"uid":1,"gid":2}}}}"#,
        r#"{"id":0,"reply":{"ready":{"version":1}}}"#,
        r#"{"id":5,"reply":{"failed":{"kind":"system","errno":2,"detail":""}}}"#,
    ]
    .map(Into::into)
    .into()
}
