//! What has to hold whatever was killed and whatever ran out: nothing half-made, nothing that nobody owns.

use std::collections::BTreeSet;

use duet_tests::{Host, eventually};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

/// The instance that runs meanwhile and is left alone.
pub const BYSTANDER: &str = "bystander";

/// A generator whose seed is told, so that a failure can be had again.
pub fn chance() -> StdRng {
    let told = std::env::var("DUET_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = told.unwrap_or_else(rand::random::<u64>);
    eprintln!("DUET_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Waits until nothing goes on: no instance between two states, no operation.
pub fn until_at_rest(host: &Host) {
    eventually("every instance being at rest", || {
        let busy = host.get("/1.0/instances?recursion=1");
        let at_rest = |status: &Value| matches!(status.as_str(), Some("Running" | "Stopped"));
        busy.as_array()?.iter().all(|instance| at_rest(&instance["status"])).then_some(())
    });
    eventually("the daemon's own operations being over", || {
        let running = host.get("/1.0/operations");
        running["running"].as_array().is_none_or(Vec::is_empty).then_some(())
    });
}

/// The instances besides the one that is left alone.
pub fn names(host: &Host) -> Vec<String> {
    let instances = host.get("/1.0/instances?recursion=1");
    let names = instances.as_array().unwrap().iter().map(|instance| instance["name"].as_str().unwrap().to_owned());
    names.filter(|name| name != BYSTANDER).collect()
}

/// What there is of the instances on the host, and nothing else.
pub fn assert_tidy(host: &Host, after: &str) {
    let instances: Value = host.get("/1.0/instances?recursion=2");
    let instances = instances.as_array().unwrap();
    let running: Vec<&Value> = instances.iter().filter(|instance| instance["status"] == "Running").collect();
    let nics = running.iter().flat_map(|instance| instance["expanded_devices"].as_object().unwrap().values());
    let nics = nics.filter(|device| device["type"] == "nic").count();
    let running = running.len();
    assert_eq!(host.running("duet-monitor").len(), running, "{after}: monitors");
    let links = || host.sh("ip -br link | grep -c '^duet[0-9a-f]\\{8\\}' || true").parse::<usize>().unwrap();
    assert_eq!(links(), nics, "{after}: links");
    let state = host.state();
    let listed = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(state.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(listed("storage-pools/default/tmp"), BTreeSet::new(), "{after}: half-made layers");
    assert_eq!(listed("work"), BTreeSet::new(), "{after}: half-made images");
    assert_eq!(listed("run").len(), running, "{after}: run folders");
    // Every layer on the disk is somebody's, and everybody's layers are on the disk.
    let database =
        rusqlite::Connection::open_with_flags(state.join("duet.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
            .unwrap();
    let mut owned = BTreeSet::new();
    for table in ["instances", "snapshots"] {
        let mut query = database.prepare(&format!("SELECT volume FROM {table}")).unwrap();
        let volumes = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
        for volume in volumes {
            let volume: Value = serde_json::from_str(&volume.unwrap()).unwrap();
            owned.extend(volume["lowers"].as_array().into_iter().flatten().map(|id| id.as_str().unwrap().to_owned()));
            owned.extend(volume["upper"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(listed("storage-pools/default/layers"), owned, "{after}: layers");
}
