//! Which modules a kernel has, and what they depend on (modules.dep(5), depmod(8)).

use std::collections::{BTreeMap, BTreeSet};

/// How deep modules depend on each other at most; real ones do by less than ten.
const MAX_DEPTH: usize = 32;

/// The lists of a kernel.
pub(super) struct Modules {
    /// By name: the path, and the paths of what it depends on.
    loadable: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl Modules {
    /// Reads `modules.dep` and `modules.builtin`. Lines that are none are passed over.
    pub fn parse(dependencies: &str, built_in: &str) -> Self {
        let line = |line: &str| {
            let (path, needs) = line.split_once(':')?;
            let name = name_of(path)?;
            Some((name, (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect())))
        };
        Self {
            loadable: dependencies.lines().filter_map(line).collect(),
            built_in: built_in.lines().filter_map(name_of).collect(),
        }
    }

    pub fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(name)
    }

    /// Adds a module's path and name, after those of all that it depends on, to a list that may have some of them already.
    /// `false` if there is no such module.
    pub fn choose(&self, name: &str, chosen: &mut Vec<(String, String)>) -> bool {
        self.visit(name, chosen, &mut BTreeSet::new(), 0)
    }

    fn visit(&self, name: &str, chosen: &mut Vec<(String, String)>, seen: &mut BTreeSet<String>, depth: usize) -> bool {
        let Some((path, needs)) = self.loadable.get(name) else { return false };
        if depth >= MAX_DEPTH || chosen.iter().any(|(_, chosen)| chosen == name) || !seen.insert(name.to_owned()) {
            return true;
        }
        // modprobe loads them from the last to the first.
        for need in needs.iter().rev() {
            if let Some(need) = name_of(need) {
                self.visit(&need, chosen, seen, depth + 1);
            }
        }
        chosen.push((path.clone(), name.to_owned()));
        true
    }
}

/// A module's name: that of its file, with `_` for `-`. It becomes a file's name, so it has letters, digits and `_` only.
fn name_of(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let (name, ending) = file.split_once(".ko")?;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let known = matches!(ending, "" | ".xz" | ".gz" | ".zst");
    (plain && known && !name.is_empty() && name.len() <= 64).then(|| name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(dependencies: &str, name: &str) -> Vec<String> {
        let mut chosen = Vec::new();
        Modules::parse(dependencies, "").choose(name, &mut chosen);
        chosen.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn what_is_depended_on_comes_first() {
        let list = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/fs/mbcache.ko.xz kernel/lib/crc16.ko.xz\n\
                    kernel/fs/jbd2/jbd2.ko.xz:\nkernel/fs/mbcache.ko.xz:\nkernel/lib/crc16.ko.xz:\n\
                    kernel/a/virtio-rng.ko: kernel/a/virtio.ko\nkernel/a/virtio.ko:\n";
        assert_eq!(chosen(list, "ext4"), ["crc16", "mbcache", "jbd2", "ext4"]);
        assert_eq!(chosen(list, "virtio_rng"), ["virtio", "virtio_rng"]);
        assert!(chosen(list, "xfs").is_empty());
        let modules = Modules::parse("", "kernel/fs/ext4/ext4.ko\nkernel/x-y.ko\n");
        assert!(modules.is_built_in("ext4") && modules.is_built_in("x_y") && !modules.is_built_in("xfs"));
    }

    #[test]
    fn lists_that_nobody_would_write_are_survived() {
        assert_eq!(chosen("a.ko: b.ko\nb.ko: a.ko a.ko\n", "a"), ["b", "a"]);
        assert_eq!(chosen("a.ko: a.ko no.ko ../../b.ko\n../b.ko:\n", "a"), ["b", "a"]);
        let chain: String = (0..5000).map(|n| format!("m{n}.ko: m{}.ko\n", n + 1)).collect();
        assert!(chosen(&chain, "m0").len() <= MAX_DEPTH);
        assert_eq!(name_of("kernel/x.ko/../y.ko.xz"), Some("y".to_owned()));
        for bad in ["", "/", ".ko", "a b.ko", "\u{e9}.ko", "a.ko.lz4", "a.o", &format!("{}.ko", "a".repeat(65))] {
            assert_eq!(name_of(bad), None, "{bad}");
        }
    }
}
