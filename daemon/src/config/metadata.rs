//! The table as clients read it: the answer to `GET /1.0/metadata/configuration`.
//!
//! The shape is Incus': scope, then heading, then a list of one-key objects. Incus' own heading names are used,
//! so that programs that look a key up there find it.

use serde_json::{Map, Value, json};

use super::InstanceKind;
use super::table::{DeviceOption, Key, Live, Scope, TYPES};

/// The whole document: `{"configs": {"instance": {"boot": {"keys": [...]}}, ...}}`.
#[must_use]
pub fn metadata_configuration() -> Value {
    let devices: Map<String, Value> = TYPES
        .iter()
        .filter(|kind| !kind.options.is_empty())
        .map(|kind| {
            (kind.heading.to_owned(), json!({ "keys": kind.options.iter().map(device_option).collect::<Vec<_>>() }))
        })
        .collect();
    json!({
        "configs": {
            "devices": devices,
            "instance": groups(Scope::Instance),
            "network_bridge": groups(Scope::Network),
            "server": groups(Scope::Server),
            "storage_overlay": groups(Scope::Pool),
        }
    })
}

fn groups(scope: Scope) -> Value {
    let mut groups = Map::new();
    for row in scope.keys() {
        let group = groups.entry(row.group).or_insert_with(|| json!({ "keys": [] }));
        if let Some(keys) = group["keys"].as_array_mut() {
            keys.push(key(scope, row));
        }
    }
    Value::Object(groups)
}

fn key(scope: Scope, row: &Key) -> Value {
    let mut entry = Map::new();
    let mut put = |name: &str, value: &str| {
        if !value.is_empty() {
            entry.insert(name.to_owned(), value.into());
        }
    };
    if let Some(only) = row.only {
        put(
            "condition",
            match only {
                InstanceKind::Container => "container",
                InstanceKind::VirtualMachine => "virtual machine",
            },
        );
    }
    put("defaultdesc", row.default);
    if scope == Scope::Instance {
        put(
            "liveupdate",
            match row.live {
                Live::Yes => "yes",
                Live::NextStart => "no",
                Live::NextExec => "yes (exec)",
            },
        );
    }
    put("shortdesc", row.short);
    put("type", row.kind.type_name());
    // Always present, as it is with Incus.
    entry.insert("longdesc".to_owned(), row.long.into());
    json!({ row.name: entry })
}

fn device_option(row: &DeviceOption) -> Value {
    let mut entry = Map::new();
    entry.insert("longdesc".to_owned(), row.long.into());
    entry.insert("required".to_owned(), row.required.into());
    entry.insert("shortdesc".to_owned(), row.short.into());
    entry.insert("type".to_owned(), row.kind.type_name().into());
    if !row.default.is_empty() {
        entry.insert("defaultdesc".to_owned(), row.default.into());
    }
    json!({ row.name: entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_that_of_incus() {
        let document = metadata_configuration();
        let limits = document["configs"]["instance"]["resource-limits"]["keys"].as_array().unwrap();
        let cpu = limits.iter().find_map(|entry| entry.get("limits.cpu.allowance")).unwrap();
        assert_eq!(cpu["type"], "string");
        assert_eq!(cpu["liveupdate"], "yes");
        assert_eq!(cpu["condition"], "container");
        assert_eq!(cpu["defaultdesc"], "100%");
        assert!(cpu["shortdesc"].is_string() && cpu["longdesc"].is_string());
        let path = &document["configs"]["devices"]["disk"]["keys"][0]["path"];
        assert_eq!(path["required"], "yes");
        assert!(document["configs"]["network_bridge"]["common"]["keys"].is_array());
    }

    #[test]
    fn every_row_is_served() {
        let text = metadata_configuration().to_string();
        for scope in [Scope::Instance, Scope::Network, Scope::Pool, Scope::Server] {
            for row in scope.keys() {
                assert!(text.contains(&format!("{:?}:{{", row.name)), "{}", row.name);
            }
        }
    }
}
