//! The columns of `duet list`: Incus' letters, and keys as columns.

use anyhow::bail;

use crate::api::{InstanceFull, InstanceStateNetwork};
use crate::cli::output::{Column, bytes_iec, date, select_columns};

/// Columns whose cells come from the instance itself.
const STORED: &[Column<InstanceFull>] = &[
    Column { letter: 'a', header: "ARCHITECTURE", cell: |i| i.instance.architecture.clone() },
    Column { letter: 'b', header: "STORAGE POOL", cell: pool },
    Column { letter: 'c', header: "CREATED AT", cell: |i| date(i.instance.created_at) },
    Column { letter: 'd', header: "DESCRIPTION", cell: |i| i.instance.description.clone() },
    Column { letter: 'e', header: "PROJECT", cell: |i| i.instance.project.clone() },
    Column { letter: 'f', header: "BASE IMAGE", cell: |i| base_image(i).chars().take(12).collect() },
    Column { letter: 'F', header: "BASE IMAGE", cell: base_image },
    Column { letter: 'l', header: "LAST USED AT", cell: |i| date(i.instance.last_used_at) },
    Column { letter: 'L', header: "LOCATION", cell: |i| i.instance.location.clone() },
    Column { letter: 'n', header: "NAME", cell: |i| i.instance.name.clone() },
    Column { letter: 'P', header: "PROFILES", cell: |i| i.instance.profiles.join("\n") },
    Column { letter: 's', header: "STATE", cell: |i| i.instance.status.to_uppercase() },
    Column { letter: 't', header: "TYPE", cell: kind },
];

/// Columns for which the daemon has to look at snapshots or at what runs.
const OBSERVED: &[Column<InstanceFull>] = &[
    Column { letter: '4', header: "IPV4", cell: |i| addresses(i, "inet") },
    Column { letter: '6', header: "IPV6", cell: |i| addresses(i, "inet6") },
    Column { letter: 'D', header: "DISK USAGE", cell: disk },
    Column { letter: 'm', header: "MEMORY USAGE", cell: |i| memory(i).map(bytes_iec).unwrap_or_default() },
    Column { letter: 'M', header: "MEMORY USAGE%", cell: memory_share },
    Column { letter: 'N', header: "PROCESSES", cell: processes },
    Column { letter: 'p', header: "PID", cell: pid },
    Column { letter: 'S', header: "SNAPSHOTS", cell: |i| i.snapshots.as_ref().map_or(0, Vec::len).to_string() },
    Column { letter: 'u', header: "CPU USAGE", cell: cpu },
    Column {
        letter: 'U',
        header: "STARTED AT",
        cell: |i| i.state.as_ref().map(|s| date(s.started_at)).unwrap_or_default(),
    },
];

/// A chosen column.
pub(super) enum Choice {
    /// By its letter; `true` if it needs the instance's state.
    Letter(&'static Column<InstanceFull>, bool),
    /// A configuration key.
    Config {
        /// The key.
        key: String,
        /// What stands over the column.
        header: String,
        /// The widest that it may be; 0 for any width.
        width: usize,
    },
    /// An option of a device.
    Device {
        /// The device.
        device: String,
        /// The option.
        option: String,
        /// What stands over the column.
        header: String,
        /// The widest that it may be; 0 for any width.
        width: usize,
    },
}

impl Choice {
    /// Whether the column needs the instance's state.
    pub(super) fn needs_state(&self) -> bool {
        matches!(self, Self::Letter(_, true))
    }

    /// What stands over the column.
    pub(super) fn header(&self) -> String {
        match self {
            Self::Letter(column, _) => column.header.to_owned(),
            Self::Config { header, .. } | Self::Device { header, .. } => header.clone(),
        }
    }

    /// What the column says of an instance.
    pub(super) fn cell(&self, instance: &InstanceFull) -> String {
        let (value, width) = match self {
            Self::Letter(column, _) => return (column.cell)(instance),
            Self::Config { key, width, .. } => (instance.instance.expanded_config.get(key), width),
            Self::Device { device, option, width, .. } => {
                (instance.instance.expanded_devices.get(device).and_then(|options| options.get(option)), width)
            }
        };
        let value = value.cloned().unwrap_or_default();
        if *width == 0 { value } else { value.chars().take(*width).collect() }
    }
}

/// The columns that a specification names: letters, and after commas keys such as `user.owner`,
/// `config:user.owner:OWNER:8` and `devices:eth0.network`.
pub(super) fn choose(spec: &str) -> anyhow::Result<Vec<Choice>> {
    let mut chosen = Vec::new();
    for item in spec.split(',').filter(|item| !item.is_empty()) {
        if item.contains('.') || item.contains(':') {
            chosen.push(key_column(item)?);
            continue;
        }
        for letter in item.chars() {
            let text = letter.to_string();
            match select_columns(&text, STORED) {
                Ok(columns) => chosen.extend(columns.into_iter().map(|column| Choice::Letter(column, false))),
                Err(_) => match select_columns(&text, OBSERVED) {
                    Ok(columns) => chosen.extend(columns.into_iter().map(|column| Choice::Letter(column, true))),
                    Err(_) => bail!("unknown column {letter:?} in {spec:?}; \"duet list --help\" names them all"),
                },
            }
        }
    }
    if chosen.is_empty() {
        bail!("--columns needs at least one column");
    }
    Ok(chosen)
}

fn key_column(item: &str) -> anyhow::Result<Choice> {
    let (devices, rest) = match item.split_once(':') {
        Some(("config", rest)) => (false, rest),
        Some(("devices", rest)) => (true, rest),
        _ => (false, item),
    };
    let mut parts = rest.splitn(3, ':');
    let key = parts.next().unwrap_or_default();
    let header = parts.next().filter(|name| !name.is_empty()).unwrap_or(key).to_owned();
    let width = match parts.next() {
        None | Some("-1") => 0,
        Some(text) => match text.parse() {
            Ok(width) => width,
            Err(_) => bail!("{text:?} is not a column width in {item:?}"),
        },
    };
    if key.is_empty() {
        bail!("a key is missing in the column {item:?}");
    }
    if !devices {
        return Ok(Choice::Config { key: key.to_owned(), header, width });
    }
    match key.split_once('.') {
        Some((device, option)) => Ok(Choice::Device { device: device.into(), option: option.into(), header, width }),
        None => bail!("{item:?} is not devices:DEVICE.OPTION, such as devices:eth0.network"),
    }
}

/// The list of columns for `--help`.
pub(super) fn help() -> String {
    let mut columns: Vec<_> = STORED.iter().chain(OBSERVED).collect();
    columns.sort_by_key(|column| (column.letter.to_ascii_lowercase(), column.letter));
    let mut text = String::from("Columns:\n");
    for column in columns {
        let what = match column.letter {
            'F' => "base image (whole fingerprint)".to_owned(),
            'S' => "number of snapshots".to_owned(),
            'N' => "number of processes".to_owned(),
            'p' => "process id of the init".to_owned(),
            _ => column.header.to_lowercase().replace("ipv", "IPv").replace("pid", "PID"),
        };
        text.push_str(&format!("  {}  {what}\n", column.letter));
    }
    text + "Keys follow after commas: -c ns,user.owner,config:image.os:OS,devices:eth0.network"
}

fn pool(instance: &InstanceFull) -> String {
    let root = instance.instance.expanded_devices.values().find(|options| {
        options.get("type").is_some_and(|kind| kind == "disk") && options.get("path").is_some_and(|path| path == "/")
    });
    root.and_then(|options| options.get("pool")).cloned().unwrap_or_default()
}

fn base_image(instance: &InstanceFull) -> String {
    instance.instance.config.get("volatile.base_image").cloned().unwrap_or_default()
}

fn kind(instance: &InstanceFull) -> String {
    let kind = instance.instance.kind.name().to_uppercase();
    if instance.instance.ephemeral { format!("{kind} (EPHEMERAL)") } else { kind }
}

/// The global addresses of one family with their links, one in each line.
fn addresses(instance: &InstanceFull, family: &str) -> String {
    let Some(network) = instance.state.as_ref().and_then(|state| state.network.as_ref()) else {
        return String::new();
    };
    let mut found = Vec::new();
    for (link, details) in network.iter().filter(|(link, _)| *link != "lo") {
        found.extend(global(details, family).map(|address| format!("{address} ({link})")));
    }
    found.sort();
    found.reverse();
    found.join("\n")
}

/// A link's addresses that others can reach.
pub(super) fn global<'a>(
    network: &'a InstanceStateNetwork,
    family: &'a str,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let wanted = move |scope: &str| scope != "link" && scope != "local";
    network.addresses.iter().filter(move |a| a.family == family && wanted(&a.scope)).map(|a| a.address.as_str())
}

fn disk(instance: &InstanceFull) -> String {
    let usage = instance.state.as_ref().and_then(|state| state.disk.get("root")).map(|disk| disk.usage);
    usage.filter(|&usage| usage > 0).map(|usage| bytes_iec(usage.unsigned_abs())).unwrap_or_default()
}

fn memory(instance: &InstanceFull) -> Option<u64> {
    let usage = instance.state.as_ref()?.memory.usage;
    (usage > 0).then_some(usage.unsigned_abs())
}

fn memory_share(instance: &InstanceFull) -> String {
    let total = instance.state.as_ref().map_or(0, |state| state.memory.total);
    match memory(instance) {
        Some(usage) if total > 0 => format!("{:.1}%", usage as f64 * 100.0 / total as f64),
        _ => String::new(),
    }
}

fn processes(instance: &InstanceFull) -> String {
    match instance.state.as_ref().map(|state| state.processes) {
        Some(count) if count > 0 => count.to_string(),
        _ => String::new(),
    }
}

fn pid(instance: &InstanceFull) -> String {
    match instance.state.as_ref().map(|state| state.pid) {
        Some(pid) if pid > 0 => pid.to_string(),
        _ => String::new(),
    }
}

fn cpu(instance: &InstanceFull) -> String {
    match instance.state.as_ref().map(|state| state.cpu.usage) {
        Some(usage) if usage > 0 => format!("{}s", usage / 1_000_000_000),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{InstanceState, InstanceStateNetworkAddress};

    fn running() -> InstanceFull {
        let mut instance = InstanceFull::default();
        instance.instance.name = "c1".into();
        instance.instance.expanded_config.insert("user.owner".into(), "eva-maria".into());
        let address = |family: &str, address: &str, scope: &str| InstanceStateNetworkAddress {
            family: family.into(),
            address: address.into(),
            netmask: "24".into(),
            scope: scope.into(),
        };
        let eth0 = InstanceStateNetwork {
            addresses: vec![address("inet", "10.0.0.2", "global"), address("inet6", "fe80::1", "link")],
            ..InstanceStateNetwork::default()
        };
        let lo = InstanceStateNetwork {
            addresses: vec![address("inet", "127.0.0.1", "local")],
            ..InstanceStateNetwork::default()
        };
        let network = [("eth0".to_owned(), eth0), ("lo".to_owned(), lo)].into();
        instance.state = Some(InstanceState { network: Some(network), ..InstanceState::default() });
        instance
    }

    #[test]
    fn letters_and_keys() {
        let columns = choose("n4,6,config:user.owner:OWNER:3,user.none").unwrap();
        let headers: Vec<_> = columns.iter().map(Choice::header).collect();
        assert_eq!(headers, ["NAME", "IPV4", "IPV6", "OWNER", "user.none"]);
        let cells: Vec<_> = columns.iter().map(|column| column.cell(&running())).collect();
        assert_eq!(cells, ["c1", "10.0.0.2 (eth0)", "", "eva", ""]);
    }

    #[test]
    fn state_is_asked_for_only_when_needed() {
        assert!(!choose("nsacPt").unwrap().iter().any(Choice::needs_state));
        assert!(choose("ns4").unwrap().iter().any(Choice::needs_state));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(choose("nZ").is_err());
        assert!(choose("").is_err());
        assert!(choose("devices:eth0").is_err());
        assert!(choose("user.x:X:wide").is_err());
    }

    #[test]
    fn letters_are_unique() {
        let mut letters: Vec<char> = STORED.iter().chain(OBSERVED).map(|column| column.letter).collect();
        letters.sort_unstable();
        let count = letters.len();
        letters.dedup();
        assert_eq!(letters.len(), count);
    }
}
