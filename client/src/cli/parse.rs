//! Small languages of the command line: names, key=value pairs, modes, paths into instances.

use anyhow::{Context as _, bail};

/// A name that may carry the prefix of a remote. There is one host: `local:` is dropped, others are refused.
pub(crate) fn local_name(text: &str) -> anyhow::Result<&str> {
    match text.split_once(':') {
        None => Ok(text),
        Some(("local" | "", rest)) => Ok(rest),
        Some((remote, _)) => bail!(
            "there is no remote {remote:?}: Duet serves this host only; leave out \"{remote}:\" or write \"local:\""
        ),
    }
}

/// A name that must not be empty.
pub(crate) fn required_name<'a>(text: &'a str, what: &str) -> anyhow::Result<&'a str> {
    match local_name(text)? {
        "" => bail!("the {what}'s name is missing"),
        name => Ok(name),
    }
}

/// "instance/snapshot" split, or the instance alone.
pub(crate) fn instance_and_snapshot(text: &str) -> anyhow::Result<(&str, Option<&str>)> {
    let text = required_name(text, "instance")?;
    match text.split_once('/') {
        None => Ok((text, None)),
        Some((instance, snapshot)) if !instance.is_empty() && !snapshot.is_empty() => Ok((instance, Some(snapshot))),
        Some(_) => bail!("{text:?} is not an instance or instance/snapshot"),
    }
}

/// "instance/path" as the instance and the path from its root.
pub(crate) fn instance_path(text: &str) -> anyhow::Result<(String, String)> {
    let text = local_name(text)?;
    match text.split_once('/') {
        Some((instance, path)) if !instance.is_empty() => Ok((instance.to_owned(), format!("/{path}"))),
        _ => bail!("{text:?} is not INSTANCE/PATH, such as c1/etc/hosts"),
    }
}

/// One `key=value`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// `key=value ...`, or `key value` for a single one. A value of `-` is read from standard input.
pub(crate) fn assignments(args: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let pairs = match args {
        [] => bail!("KEY=VALUE is missing"),
        [key, value] if !key.contains('=') => vec![(key.clone(), value.clone())],
        _ => args.iter().map(|arg| key_value(arg)).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?,
    };
    pairs
        .into_iter()
        .map(|(key, value)| match value.as_str() {
            "-" => Ok((key, std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?)),
            _ => Ok((key, value)),
        })
        .collect()
}

/// A device option `device,key=value`.
pub(crate) fn device_option(text: &str) -> Result<(String, String, String), String> {
    let parsed = text.split_once(',').and_then(|(device, rest)| Some((device, rest.split_once('=')?)));
    match parsed {
        Some((device, (key, value))) if !device.is_empty() && !key.is_empty() => {
            Ok((device.to_owned(), key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("{text:?} is not DEVICE,KEY=VALUE, such as root,size=10GiB")),
    }
}

/// Permission bits in octal.
pub(crate) fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("{text:?} is not an octal mode such as 0644")),
    }
}

/// `*` and `?` as shells have them; `.*` counts as `*`, which is what people write for Incus.
pub(crate) fn glob_matches(pattern: &str, text: &str) -> bool {
    fn matches(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|at| matches(rest, &text[at..])),
            Some(('?', rest)) => !text.is_empty() && matches(rest, &text[1..]),
            Some((c, rest)) => text.first() == Some(c) && matches(rest, &text[1..]),
        }
    }
    let pattern: Vec<char> = pattern.replace(".*", "*").chars().collect();
    matches(&pattern, &text.chars().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes() {
        assert_eq!(local_name("c1").unwrap(), "c1");
        assert_eq!(local_name("local:c1").unwrap(), "c1");
        assert_eq!(local_name("local:").unwrap(), "");
        let error = local_name("images:debian/13").unwrap_err().to_string();
        assert!(error.contains("no remote \"images\""), "{error}");
        assert!(required_name("local:", "instance").is_err());
    }

    #[test]
    fn snapshots_and_paths() {
        assert_eq!(instance_and_snapshot("c1").unwrap(), ("c1", None));
        assert_eq!(instance_and_snapshot("local:c1/s0").unwrap(), ("c1", Some("s0")));
        assert!(instance_and_snapshot("c1/").is_err());
        assert_eq!(instance_path("c1/etc/hosts").unwrap(), ("c1".into(), "/etc/hosts".into()));
        assert_eq!(instance_path("c1/").unwrap(), ("c1".into(), "/".into()));
        assert_eq!(instance_path("local:c1//x").unwrap(), ("c1".into(), "//x".into()));
        assert!(instance_path("c1").is_err());
        assert!(instance_path("/etc").is_err());
    }

    #[test]
    fn pairs() {
        let args = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(assignments(&args(&["a", "b"])).unwrap(), [pair("a", "b")]);
        assert_eq!(assignments(&args(&["a=b=c", "d="])).unwrap(), [pair("a", "b=c"), pair("d", "")]);
        assert!(assignments(&args(&["a"])).is_err());
        assert!(assignments(&args(&["=x"])).is_err());
        assert_eq!(device_option("root,size=1").unwrap(), ("root".into(), "size".into(), "1".into()));
        assert!(device_option("root").is_err());
        assert!(device_option("root,size").is_err());
    }

    #[test]
    fn modes() {
        assert_eq!(mode("0644").unwrap(), 0o644);
        assert_eq!(mode("755").unwrap(), 0o755);
        assert_eq!(mode("4755").unwrap(), 0o4755);
        assert!(mode("888").is_err());
        assert!(mode("77777").is_err());
        assert!(mode("").is_err());
    }

    #[test]
    fn globs() {
        assert!(glob_matches("web*", "web-1"));
        assert!(glob_matches("web.*", "web"));
        assert!(glob_matches("*-1", "web-1"));
        assert!(glob_matches("c?", "c1"));
        assert!(!glob_matches("c?", "c12"));
        assert!(!glob_matches("web", "web-1"));
    }
}
