//! The wire, byte for byte: bodies are read and must be written back unchanged, in the same order, with the same
//! fields left out, empty or `null`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;

/// Reads a body and compares what is written again with it.
fn unchanged<T: DeserializeOwned + Serialize>(body: &str) -> T {
    let value: T = serde_json::from_str(body).unwrap();
    // The bodies here are wrapped for reading: line ends and the spaces that follow them do not count.
    let compact: String = body.lines().map(str::trim).collect();
    assert_eq!(serde_json::to_string(&value).unwrap(), compact);
    value
}

const INSTANCE: &str = r#""architecture":"x86_64","config":{"user.a":"1","volatile.uuid":"u"},"devices":{},
    "ephemeral":false,"profiles":["default"],"stateful":false,"description":"",
    "created_at":"2026-05-01T10:00:00.82334785Z","expanded_config":{"user.a":"1","volatile.uuid":"u"},
    "expanded_devices":{"root":{"path":"/","pool":"default","type":"disk"}},"name":"c1","status":"Running",
    "status_code":103,"last_used_at":"1970-01-01T00:00:00Z","location":"none","type":"container",
    "project":"default""#;

#[test]
fn instances() {
    let instance: Instance = unchanged(&format!("{{{INSTANCE}}}"));
    assert_eq!(instance.status_code, StatusCode::Running);
    assert!(!instance.last_used_at.is_set());
    assert_eq!(instance.writable().profiles.unwrap(), ["default"]);
}

#[test]
fn instances_with_everything() {
    let body = format!(
        r#"{{{INSTANCE},"backups":null,"state":{{"status":"Running","status_code":103,
        "disk":{{"root":{{"usage":4096,"total":0}}}},
        "memory":{{"usage":622592,"usage_peak":1564672,"total":1,"swap_usage":0,"swap_usage_peak":0}},
        "network":{{"lo":{{"addresses":[{{"family":"inet","address":"127.0.0.1","netmask":"8","scope":"local"}}],
        "counters":{{"bytes_received":1,"bytes_sent":2,"packets_received":3,"packets_sent":4,"errors_received":5,
        "errors_sent":6,"packets_dropped_outbound":7,"packets_dropped_inbound":8}},"hwaddr":"","host_name":"",
        "mtu":65536,"state":"up","type":"loopback"}}}},"pid":7,"processes":2,
        "cpu":{{"usage":14892286,"allocated_time":2000000000}},"started_at":"2026-05-01T10:00:01Z",
        "os_info":null}},"snapshots":null}}"#
    );
    let full: InstanceFull = unchanged(&body);
    assert_eq!(full.instance.name, "c1");
    assert_eq!(full.state.unwrap().network.unwrap()["lo"].counters.packets_dropped_inbound, 8);
}

#[test]
fn operations_and_events() {
    let operation = r#"{"id":"i","class":"task","description":"Creating instance",
        "created_at":"2026-05-01T10:00:00Z","updated_at":"2026-05-01T10:00:00Z","status":"Running",
        "status_code":103,"resources":{"instances":["/1.0/instances/c1"]},
        "metadata":{"create_instance_from_image_unpack_progress":"Unpacking image: 5%",
        "progress":{"percent":"5","speed":"1","stage":"create_instance_from_image_unpack"}},
        "may_cancel":false,"err":"","location":"none"}"#;
    let read: Operation = unchanged(operation);
    assert_eq!(read.progress_text(), Some("Unpacking image: 5%"));
    unchanged::<Operation>(
        r#"{"id":"i","class":"websocket","description":"","created_at":"0001-01-01T00:00:00Z",
        "updated_at":"0001-01-01T00:00:00Z","status":"Cancelled","status_code":401,"resources":{},
        "metadata":null,"may_cancel":true,"err":"x","location":"none"}"#,
    );
    unchanged::<Event>(
        r#"{"type":"lifecycle","timestamp":"2026-05-01T10:00:00.5Z","metadata":null,"location":"none",
        "project":"default"}"#,
    );
    unchanged::<EventLifecycle>(
        r#"{"action":"instance-created","source":"/1.0/instances/c1","context":{"type":"container"},
        "requestor":{"username":"root","protocol":"unix","address":"@"},"name":"c1","project":"default"}"#,
    );
    unchanged::<EventLifecycle>(r#"{"action":"instance-started","source":"/1.0/instances/c1"}"#);
}

#[test]
fn images() {
    let image: Image = unchanged(
        r#"{"auto_update":false,"properties":{"os":"busybox"},"public":false,"expires_at":"0001-01-01T00:00:00Z",
        "profiles":["default"],"aliases":[{"name":"tiny","description":""}],"architecture":"x86_64",
        "cached":false,"filename":"x.tar.gz","fingerprint":"ab","size":10,"type":"container",
        "created_at":"2026-05-01T10:00:00Z","last_used_at":"0001-01-01T00:00:00Z",
        "uploaded_at":"2026-05-01T10:00:00Z","project":"default"}"#,
    );
    assert!(image.update_source.is_none());
    unchanged::<ImageAliasesEntry>(r#"{"description":"","target":"ab","name":"tiny","type":"container"}"#);
}

#[test]
fn networks_pools_and_profiles() {
    unchanged::<Network>(
        r#"{"config":{},"description":"","name":"lo","type":"loopback","used_by":[],"managed":false,"status":"",
        "locations":null,"project":"default"}"#,
    );
    unchanged::<StoragePool>(
        r#"{"config":{"source":"/x"},"description":"","name":"default","driver":"overlay","used_by":[],
        "status":"Created","locations":["none"]}"#,
    );
    unchanged::<Profile>(
        r#"{"config":{},"description":"","devices":{"eth0":{"network":"br0","type":"nic"}},"name":"default",
        "used_by":["/1.0/instances/c1"],"project":"default"}"#,
    );
    unchanged::<NetworkLease>(
        r#"{"hostname":"c1","hwaddr":"10:66:6a:00:00:01","address":"10.0.0.2","type":"dynamic","location":"none"}"#,
    );
}

#[test]
fn sessions() {
    unchanged::<InstanceExecPost>(
        r#"{"command":["true"],"wait-for-websocket":true,"interactive":false,"environment":{"TERM":"xterm"},
        "width":0,"height":0,"record-output":false,"user":0,"group":0,"cwd":""}"#,
    );
    unchanged::<InstanceExecMetadata>(
        r#"{"command":["true"],"environment":{},"fds":{"0":"a","control":"b"},"interactive":true,"return":3}"#,
    );
    assert_eq!(
        serde_json::to_string(&SessionControl::resize(120, 40)).unwrap(),
        r#"{"command":"window-resize","args":{"height":"40","width":"120"}}"#
    );
    assert_eq!(
        serde_json::to_string(&SessionControl::signal(15)).unwrap(),
        r#"{"command":"signal","args":{},"signal":15}"#
    );
}

#[test]
fn envelopes() {
    unchanged::<Response>(
        r#"{"type":"error","status":"","status_code":0,"operation":"","error_code":404,"error":"gone",
        "metadata":null}"#,
    );
    assert_eq!(
        serde_json::to_string(&Response::sync(serde_json::json!({}))).unwrap(),
        r#"{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":{}}"#
    );
    assert_eq!(
        serde_json::to_string(&Response::background("/1.0/operations/x".into(), serde_json::Value::Null)).unwrap(),
        r#"{"type":"async","status":"Operation created","status_code":100,"operation":"/1.0/operations/x","error_code":0,"error":"","metadata":null}"#
    );
}

#[test]
fn what_clients_leave_out_or_send_as_null_reads_as_the_default() {
    let post: InstancesPost = serde_json::from_str(
        r#"{"name":"c1","config":null,"devices":null,"profiles":null,"source":{"type":"image","alias":"x"},
        "type":"","new_field":{"x":1}}"#,
    )
    .unwrap();
    assert_eq!(post.name, "c1");
    assert_eq!(post.kind, InstanceType::Container);
    assert!(post.config.is_empty() && post.profiles.is_none() && !post.start);
    assert_eq!(post.source.alias, "x");
    let exec: InstanceExecPost =
        serde_json::from_str(r#"{"command":["id"],"user":null,"group":null,"cwd":null,"interactive":false}"#).unwrap();
    assert_eq!((exec.user, exec.cwd.as_str()), (0, ""));
    let put: InstancePut = serde_json::from_str(r#"{"restore":"s0","config":null}"#).unwrap();
    assert_eq!(put.restore, "s0");
    let patch: InstancePatch = serde_json::from_str(r#"{"config":{"user.a":""}}"#).unwrap();
    assert_eq!(patch.config.unwrap()["user.a"], "");
    assert!(patch.profiles.is_none());
}

#[test]
fn mistakes_are_refused() {
    assert!(serde_json::from_str::<InstancesPost>(r#"{"type":"toaster"}"#).is_err());
    assert!(serde_json::from_str::<InstancesPost>(r#"{"config":["x"]}"#).is_err());
    assert!(serde_json::from_str::<InstanceSnapshotsPost>(r#"{"expires_at":"tomorrow"}"#).is_err());
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever text a key holds comes back as it was, in JSON.
        #[test]
        fn any_text_survives(key in ".{1,40}", value in ".{0,200}") {
            let mut put = InstancePut::default();
            put.config.insert(key, value);
            let text = serde_json::to_string(&put).unwrap();
            prop_assert_eq!(serde_json::from_str::<InstancePut>(&text).unwrap(), put);
        }

        /// Any moment that Go can print comes back as it was.
        #[test]
        fn any_time_survives(seconds in -62_135_596_800_i64..253_402_300_799, nanos in 0..1_000_000_000_i32) {
            let time = Timestamp(jiff::Timestamp::new(seconds, 0).unwrap()
                .checked_add(jiff::SignedDuration::from_nanos(nanos.into())).unwrap());
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
    }
}
