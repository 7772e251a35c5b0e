//! Many clients that do conflicting things to the same few instances.
//!
//! Each request succeeds or gets the answer that Incus gives to one who comes at the wrong moment; nothing fails for
//! any other reason, and what is left at the end works and is what the inventory says.

use duet_tests::Host;
use serde_json::{Value, json};

const CLIENTS: u64 = 6;
const STEPS: u64 = 30;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// What may be said to one who comes at the wrong moment.
const EXPECTED: &[&str] = &[
    "is busy running a",
    "not found",
    "already exists",
    "already in use",
    "already running",
    "already stopped",
    "already frozen",
    "isn't running",
    "is running",
    "running instance",
    "must be stopped",
    "is frozen",
    "meanwhile",
];

/// What one step asks: method, path, body.
fn step(number: u64, client: u64) -> (&'static str, String, Value) {
    let name = NAMES[usize::try_from(number % 3).unwrap()];
    let other = NAMES[usize::try_from((number + 1 + client % 2) % 3).unwrap()];
    let path = format!("/1.0/instances/{name}");
    let image = json!({"type": "image", "alias": "busybox"});
    match (number / 5 + client * 3) % 11 {
        0 | 1 => {
            ("POST", "/1.0/instances".into(), json!({"name": name, "source": image, "start": number.is_multiple_of(2)}))
        }
        2 => ("PUT", path + "/state", json!({"action": "start"})),
        3 => ("PUT", path + "/state", json!({"action": "stop", "force": true})),
        4 => ("PUT", path + "/state", json!({"action": "restart", "force": true})),
        5 => ("PUT", path + "/state", json!({"action": if number.is_multiple_of(2) { "freeze" } else { "unfreeze" }})),
        6 => ("POST", path + "/snapshots", json!({"name": format!("s{}", number % 4)})),
        7 => ("PUT", path, json!({"restore": format!("s{}", number % 4)})),
        8 => ("POST", "/1.0/instances".into(), json!({"name": other, "source": {"type": "copy", "source": name}})),
        9 => ("POST", path, json!({"name": other})),
        _ => ("DELETE", path, json!({})),
    }
}

#[test]
fn conflicting_clients_get_one_of_the_answers_that_some_order_gives() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let host = &host;
            scope.spawn(move || {
                for round in 0..STEPS {
                    // Spread over verbs and names by a multiplicative hash, another way for each client.
                    let number = (round * 7 + client * 13 + 1).wrapping_mul(2_654_435_761) >> 7;
                    let (method, path, body) = step(number, client);
                    let what = format!("client {client}, round {round}: {method} {path} {body}");
                    let answer = host.request(method, &path, Some(&body));
                    let said = if answer.status < 400 {
                        let operation = answer.json()["operation"].as_str().unwrap_or_default().to_owned();
                        let done = host.get(&format!("{operation}/wait?timeout=60"));
                        assert!(matches!(done["status_code"].as_i64(), Some(200 | 400)), "{what}: {done:#}");
                        done["err"].as_str().unwrap_or_default().to_owned()
                    } else {
                        assert!(answer.status < 500, "{what}: {}", answer.json());
                        answer.json()["error"].as_str().unwrap_or_default().to_owned()
                    };
                    assert!(
                        said.is_empty() || EXPECTED.iter().any(|expected| said.contains(expected)),
                        "{what} was answered: {said}"
                    );
                }
            });
        }
    });
    let instances = host.get("/1.0/instances?recursion=2");
    for instance in instances.as_array().unwrap() {
        let name = instance["name"].as_str().unwrap();
        match instance["status"].as_str().unwrap() {
            "Frozen" => drop(host.ok(&format!("resume {name}"))),
            "Stopped" => drop(host.ok(&format!("start {name}"))),
            status => assert_eq!(status, "Running", "{name}"),
        }
        assert_eq!(host.inside(name, "echo works"), "works");
        for snapshot in instance["snapshots"].as_array().into_iter().flatten() {
            host.ok(&format!("snapshot restore {name} {}", snapshot["name"].as_str().unwrap()));
        }
    }
    assert_eq!(host.running("duet-monitor").len(), instances.as_array().unwrap().len());
}
