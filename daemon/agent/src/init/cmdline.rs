//! The kernel's command line.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

/// How long the root's device is waited for, unless said otherwise.
const WAIT: Duration = Duration::from_secs(60);

/// What concerns the way to the root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CommandLine {
    pub root: Option<Root>,
    pub wait: Duration,
    pub panic: bool,
    pub modules: bool,
    pub serve: bool,
    pub types: Vec<String>,
    pub flags: Option<String>,
    pub read_only: bool,
    pub init: Option<String>,
}

/// Where the root is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Root {
    /// A device node.
    Device(PathBuf),
    /// The disk with this serial number, or one of its partitions.
    Serial { serial: String, partition: Option<u32> },
}

impl CommandLine {
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/cmdline")?))
    }

    /// The last of several words for the same thing counts, as with the kernel.
    fn parse(text: &str) -> Self {
        let mut line = Self {
            root: None,
            wait: WAIT,
            panic: false,
            modules: false,
            serve: false,
            types: Vec::new(),
            flags: None,
            read_only: true,
            init: None,
        };
        for word in words(text) {
            let (key, value) = word.split_once('=').unwrap_or((&word, ""));
            match key {
                "duet.root" => line.root = Root::parse(value),
                "duet.wait" => line.wait = value.parse().map_or(WAIT, Duration::from_secs),
                "duet.panic" => line.panic = true,
                "duet.modules" => line.modules = true,
                "duet.serve" => line.serve = true,
                "rootfstype" => line.types = value.split(',').map(str::to_owned).collect(),
                "rootflags" => line.flags = Some(value.to_owned()),
                "ro" => line.read_only = true,
                "rw" => line.read_only = false,
                "init" => line.init = Some(value.to_owned()),
                // What follows is the init's (kernel-parameters).
                "--" => break,
                _ => {}
            }
        }
        line
    }
}

impl Root {
    fn parse(value: &str) -> Option<Self> {
        let Some(disk) = value.strip_prefix("serial:") else {
            return value.starts_with("/dev/").then(|| Self::Device(value.into()));
        };
        Some(match disk.rsplit_once('/') {
            Some((serial, partition)) => {
                Self::Serial { serial: serial.to_owned(), partition: Some(partition.parse().ok()?) }
            }
            None => Self::Serial { serial: disk.to_owned(), partition: None },
        })
    }
}

/// Words are parted by white space that is not within double quotes (the kernel's `next_arg`, lib/cmdline.c).
fn words(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut quoted = false;
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            space if space.is_ascii_whitespace() && !quoted => all.push(String::new()),
            other => all.last_mut().into_iter().for_each(|word| word.push(other)),
        }
    }
    all.retain(|word| !word.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_understood() {
        let line = CommandLine::parse(
            "console=ttyS0 duet.root=/dev/vda duet.root=serial:root/2 rootfstype=ext4,xfs rootflags=\"data=journal noatime\" \
             ro rw duet.panic duet.modules duet.wait=5 init=/bin/sh -- duet.root=/dev/no\n",
        );
        assert_eq!(line.root, Some(Root::Serial { serial: "root".into(), partition: Some(2) }));
        assert_eq!(line.types, ["ext4", "xfs"]);
        assert_eq!(line.flags.as_deref(), Some("data=journal noatime"));
        assert!(!line.read_only && line.panic && line.modules && !line.serve);
        assert_eq!((line.wait, line.init.as_deref()), (Duration::from_secs(5), Some("/bin/sh")));
        let line = CommandLine::parse("duet.root=nonsense duet.wait=x");
        assert_eq!((line.root, line.wait, line.read_only), (None, WAIT, true));
        assert_eq!(Root::parse("serial:a"), Some(Root::Serial { serial: "a".into(), partition: None }));
        assert_eq!(Root::parse("serial:a/b"), None);
    }
}
