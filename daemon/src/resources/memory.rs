//! Memory: /proc/meminfo (proc_meminfo(5)), and the same of each NUMA node.

use std::collections::HashMap;

use duet_client::api::{ResourcesMemory, ResourcesMemoryNode};

use super::tree::{self, Tree};

/// Sizes in bytes and counts, by name.
struct Figures(HashMap<String, u64>);

impl Figures {
    /// Lines of `Name: 12 kB` or `Name: 12`, after `Node 0 ` in a node's file.
    fn parse(text: &str) -> Self {
        let figure = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let name = name.rsplit(' ').next()?.to_owned();
            let mut words = value.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            Some((name, if words.next() == Some("kB") { number.saturating_mul(1024) } else { number }))
        };
        Self(text.lines().filter_map(figure).collect())
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

pub(super) fn read(tree: &Tree) -> ResourcesMemory {
    let figures = Figures::parse(&tree.text("proc/meminfo").unwrap_or_default());
    let page = figures.get("Hugepagesize");
    let total = figures.get("MemTotal");
    let unused = ["MemFree", "Buffers", "Cached", "SReclaimable"].map(|name| figures.get(name)).iter().sum();
    let nodes = tree.list("sys/devices/system/node").into_iter().filter_map(|dir| {
        let number = tree::name(&dir).strip_prefix("node")?.parse().ok()?;
        let figures = Figures::parse(&tree::text(&dir.join("meminfo"))?);
        let huge = figures.get("HugePages_Total");
        Some(ResourcesMemoryNode {
            numa_node: number,
            hugepages_used: huge.saturating_sub(figures.get("HugePages_Free")) * page,
            hugepages_total: huge * page,
            used: figures.get("MemUsed"),
            total: figures.get("MemTotal"),
        })
    });
    let huge = figures.get("HugePages_Total");
    ResourcesMemory {
        nodes: nodes.collect(),
        hugepages_total: huge * page,
        hugepages_used: huge.saturating_sub(figures.get("HugePages_Free")) * page,
        hugepages_size: page,
        used: total.saturating_sub(unused),
        total,
    }
}
