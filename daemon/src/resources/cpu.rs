//! Processors: /sys/devices/system/cpu (kernel: Documentation/admin-guide/cputopology.rst) and /proc/cpuinfo.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use duet_client::api::{ResourcesCpu, ResourcesCpuCache, ResourcesCpuCore, ResourcesCpuSocket, ResourcesCpuThread};
use duet_container::cgroup::CpuList;

use super::tree::{self, Tree};

const PLACE: &str = "sys/devices/system/cpu";

/// A processor's paragraph of /proc/cpuinfo.
type Paragraph = HashMap<String, String>;

pub(super) fn read(tree: &Tree) -> ResourcesCpu {
    let described = describe(&tree.text("proc/cpuinfo").unwrap_or_default());
    let isolated = tree.text(format!("{PLACE}/isolated")).and_then(|list| list.parse().ok());
    let isolated: BTreeSet<u32> = isolated.iter().flat_map(CpuList::iter).collect();
    let mut sockets: BTreeMap<u64, ResourcesCpuSocket> = BTreeMap::new();
    let mut total = 0;
    for dir in tree.list(PLACE) {
        let Some(id) = tree::name(&dir).strip_prefix("cpu").and_then(|number| number.parse::<u32>().ok()) else {
            continue;
        };
        let topology = |name: &str| tree::number(&dir.join("topology").join(name)).unwrap_or(0);
        let described = described.get(&id);
        let of = |name: &str| described.and_then(|paragraph| paragraph.get(name)).cloned().unwrap_or_default();
        let number = topology("physical_package_id");
        let socket = sockets.entry(number).or_insert_with(|| ResourcesCpuSocket {
            name: of("model name"),
            vendor: of("vendor_id"),
            socket: number,
            cache: caches(&dir),
            frequency_minimum: megahertz(&dir, "cpuinfo_min_freq"),
            frequency_turbo: megahertz(&dir, "cpuinfo_max_freq"),
            ..ResourcesCpuSocket::default()
        });
        let (core, die) = (topology("core_id"), topology("die_id"));
        let known = socket.cores.iter().position(|known| known.core == core && known.die == die);
        let place = known.unwrap_or_else(|| {
            let flags = of("flags").split_whitespace().map(str::to_owned).collect();
            let frequency = megahertz(&dir, "scaling_cur_freq");
            socket.cores.push(ResourcesCpuCore { core, die, frequency, flags, ..ResourcesCpuCore::default() });
            socket.cores.len() - 1
        });
        let threads = &mut socket.cores[place].threads;
        threads.push(ResourcesCpuThread {
            id: i64::from(id),
            numa_node: node(&dir),
            thread: threads.len() as u64,
            // The first one cannot be taken offline on most machines, and then has no such file.
            online: tree::number(&dir.join("online")).is_none_or(|online| online == 1),
            isolated: isolated.contains(&id),
        });
        total += 1;
    }
    let mut sockets: Vec<ResourcesCpuSocket> = sockets.into_values().collect();
    for socket in &mut sockets {
        let sum: u64 = socket.cores.iter().map(|core| core.frequency).sum();
        socket.frequency = sum / (socket.cores.len() as u64).max(1);
    }
    ResourcesCpu { architecture: rustix::system::uname().machine().to_string_lossy().into_owned(), sockets, total }
}

fn describe(cpuinfo: &str) -> HashMap<u32, Paragraph> {
    let paragraph = |text: &str| -> Option<(u32, Paragraph)> {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        let pairs: Paragraph = pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect();
        Some((pairs.get("processor")?.parse().ok()?, pairs))
    };
    cpuinfo.split("\n\n").filter_map(paragraph).collect()
}

fn caches(cpu: &Path) -> Vec<ResourcesCpuCache> {
    let cache = |dir: std::path::PathBuf| {
        Some(ResourcesCpuCache {
            level: tree::number(&dir.join("level"))?,
            kind: tree::text(&dir.join("type"))?,
            size: kibibytes(&tree::text(&dir.join("size"))?)?,
        })
    };
    tree::list(&cpu.join("cache")).into_iter().filter_map(cache).collect()
}

/// `48K`, in bytes.
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
}

/// cpufreq gives kHz.
fn megahertz(cpu: &Path, file: &str) -> u64 {
    tree::number(&cpu.join("cpufreq").join(file)).unwrap_or(0) / 1000
}

fn node(cpu: &Path) -> u64 {
    let names = tree::list(cpu).into_iter().map(|path| tree::name(&path));
    names.filter_map(|name| name.strip_prefix("node")?.parse().ok()).next().unwrap_or(0)
}
