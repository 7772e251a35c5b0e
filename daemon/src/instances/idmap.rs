//! Which host ids an instance's ids become.
//!
//! All unprivileged instances share one map unless `security.idmap.isolated` gives one its own. The host's ids come
//! from root's first range in /etc/subuid and /etc/subgid (subuid(5)) that is large enough; where there is none, from
//! 1000000 on, as LXC and Incus do.

use std::collections::BTreeSet;

use duet_container::spec::IdMap;
use serde_json::json;

use super::expand::Expanded;
use super::plan::Volatile;
use crate::app::App;
use crate::config::InstanceSettings;
use crate::error::{Error, Result};

/// Ids in one map: what systemd, Debian's adduser and the `nobody` of 65534 need.
pub const RANGE: u32 = 65536;
/// Where ids begin on a host that says nothing.
const FALLBACK_BASE: u32 = 1_000_000;
/// How many ids there are on a host that says nothing.
const FALLBACK_COUNT: u32 = 1_000_000_000;

/// The host ids that root may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostIds {
    uid: u32,
    gid: u32,
    count: u32,
}

impl HostIds {
    /// Reads /etc/subuid and /etc/subgid.
    pub fn read() -> Self {
        let range = |path: &str| first_range(&std::fs::read_to_string(path).unwrap_or_default());
        match (range("/etc/subuid"), range("/etc/subgid")) {
            (Some((uid, users)), Some((gid, groups))) => Self { uid, gid, count: users.min(groups) },
            _ => Self { uid: FALLBACK_BASE, gid: FALLBACK_BASE, count: FALLBACK_COUNT },
        }
    }

    /// The user and group of the process that is the virtual machine with this id: from the last map, which others get
    /// only when all are in use. Two of 65536 machines share one.
    pub fn of_machine(self, id: i64) -> (u32, u32) {
        let last = self.count - RANGE;
        // Never the map's own root, as which a privileged program might run things.
        let own = 1 + u32::try_from(id.rem_euclid(i64::from(RANGE) - 1)).unwrap_or(0);
        (self.uid + last + own, self.gid + last + own)
    }

    /// The map number `index`; 0 is the shared one.
    fn map(self, index: u32) -> Option<IdMap> {
        let offset = index.checked_mul(RANGE)?;
        if offset.checked_add(RANGE)? > self.count {
            return None;
        }
        Some(IdMap {
            host_base_uid: self.uid.checked_add(offset)?,
            host_base_gid: self.gid.checked_add(offset)?,
            range: RANGE,
        })
    }
}

/// Root's first range that holds at least one map.
fn first_range(text: &str) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let (owner, base, count) = (fields.next()?, fields.next()?, fields.next()?);
        let (base, count): (u32, u32) = (base.parse().ok()?, count.parse().ok()?);
        (matches!(owner, "root" | "0") && base > 0 && count >= RANGE && base.checked_add(count).is_some())
            .then_some((base, count))
    })
}

/// An instance's map and the keys that record it.
pub struct Assigned {
    /// None: privileged.
    pub ids: Option<IdMap>,
    /// For the instance's own configuration.
    pub volatile: Volatile,
}

/// Chooses an instance's map.
///
/// # Errors
/// Where no isolated range is free.
pub fn of(app: &App, expanded: &Expanded, settings: &InstanceSettings) -> Result<Assigned> {
    let record = |base: Option<u32>, ids: Option<IdMap>| {
        let text = describe(ids);
        vec![
            ("volatile.idmap.base".to_owned(), Some(base.unwrap_or(0).to_string())),
            ("volatile.idmap.current".to_owned(), Some(text.clone())),
            ("volatile.idmap.next".to_owned(), Some(text)),
            ("volatile.last_state.idmap".to_owned(), Some("[]".to_owned())),
        ]
    };
    if settings.privileged {
        return Ok(Assigned { ids: None, volatile: record(None, None) });
    }
    let host = app.instances.host_ids();
    if !settings.idmap_isolated {
        let ids = host.map(0).ok_or_else(no_room)?;
        return Ok(Assigned { ids: Some(ids), volatile: record(None, Some(ids)) });
    }
    let mut taken = BTreeSet::new();
    for row in app.inventory.instances()? {
        let base = row.config.get("volatile.idmap.base").and_then(|b| b.parse::<u32>().ok()).filter(|b| *b > 0);
        if let Some(base) = base {
            if row.id == expanded.row.id
                && let Some(index) = base.checked_sub(host.uid).map(|offset| offset / RANGE).filter(|i| *i > 0)
                && let Some(ids) = host.map(index)
                && ids.host_base_uid == base
            {
                // It keeps what it has: files it shares with the host stay its own.
                return Ok(Assigned { ids: Some(ids), volatile: record(Some(base), Some(ids)) });
            }
            taken.insert(base);
        }
    }
    let free = (1..).map_while(|index| host.map(index)).find(|ids| !taken.contains(&ids.host_base_uid));
    let ids = free.ok_or_else(no_room)?;
    Ok(Assigned { ids: Some(ids), volatile: record(Some(ids.host_base_uid), Some(ids)) })
}

fn no_room() -> Error {
    Error::invalid(format!(
        "no range of {RANGE} ids is left for the instance: give root a larger range in /etc/subuid and /etc/subgid"
    ))
}

/// The map in the form that Incus records.
fn describe(ids: Option<IdMap>) -> String {
    let Some(map) = ids else { return "[]".to_owned() };
    json!([
        {"Isuid": true, "Isgid": false, "Hostid": map.host_base_uid, "Nsid": 0, "Maprange": map.range},
        {"Isuid": false, "Isgid": true, "Hostid": map.host_base_gid, "Nsid": 0, "Maprange": map.range},
    ])
    .to_string()
}

/// The map that a running instance was started with, as it was recorded.
pub fn recorded(config: &crate::inventory::ConfigMap) -> Option<IdMap> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        isuid: bool,
        hostid: u32,
        maprange: u32,
    }
    let entries: Vec<Entry> = serde_json::from_str(config.get("volatile.idmap.current")?).ok()?;
    let base = |user: bool| entries.iter().find(|e| e.isuid == user).map(|e| e.hostid);
    Some(IdMap { host_base_uid: base(true)?, host_base_gid: base(false)?, range: entries.first()?.maprange })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_large_range_of_root_counts() {
        assert_eq!(first_range("user:1:65536\nroot:100000:100\nroot:200000:131072\n"), Some((200_000, 131_072)));
        assert_eq!(first_range("# nothing\nroot:x:65536\nroot:0:65536\n"), None);
    }

    #[test]
    fn maps_stay_within_the_range() {
        let host = HostIds { uid: 200_000, gid: 300_000, count: 3 * RANGE };
        assert_eq!(host.map(2).map(|m| m.host_base_gid), Some(300_000 + 2 * RANGE));
        assert_eq!(host.map(3), None);
        let top = HostIds { uid: u32::MAX - RANGE, gid: 1, count: u32::MAX };
        assert_eq!(top.map(2), None);
    }

    #[test]
    fn a_record_reads_back() {
        let map = HostIds { uid: 7_000_000, gid: 8_000_000, count: RANGE }.map(0);
        let config = [("volatile.idmap.current".to_owned(), describe(map))].into();
        assert_eq!(recorded(&config), map);
        assert_eq!(recorded(&[("volatile.idmap.current".to_owned(), describe(None))].into()), None);
    }
}
