//! Which instances `duet list` shows.

use anyhow::bail;

use super::columns::global;
use crate::api::InstanceFull;
use crate::cli::parse::{glob_matches, local_name};

/// One filter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// A name, the beginning of one, or a pattern.
    Name(String),
    /// A property or key, and the values that it may have.
    Is(String, Vec<String>),
}

impl Filter {
    /// Reads a filter.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        match text.split_once('=') {
            Some(("", _)) => bail!("{text:?} has no property before the \"=\""),
            Some((key, values)) => Ok(Self::Is(key.to_owned(), values.split(',').map(str::to_owned).collect())),
            None => Ok(Self::Name(local_name(text)?.to_owned())),
        }
    }

    /// Whether the filter looks at the instance's state.
    pub(super) fn needs_state(&self) -> bool {
        matches!(self, Self::Is(key, _) if key == "ipv4" || key == "ipv6")
    }
}

/// Whether an instance has one of the names (if any are given) and meets all conditions.
pub(super) fn accepts(filters: &[Filter], instance: &InstanceFull) -> bool {
    let mut names = filters.iter().filter_map(|filter| match filter {
        Filter::Name(name) => Some(name),
        Filter::Is(..) => None,
    });
    let named = names.clone().next().is_none() || names.any(|name| name_matches(name, &instance.instance.name));
    named
        && filters.iter().all(|filter| match filter {
            Filter::Name(_) => true,
            Filter::Is(key, values) => is(instance, key, values),
        })
}

/// A beginning or a pattern; `$` at its end, which people write for Incus, asks for the whole name.
fn name_matches(filter: &str, name: &str) -> bool {
    let filter = filter.trim_start_matches('^');
    match filter.strip_suffix('$') {
        Some(whole) => glob_matches(whole, name),
        None => name.starts_with(filter) || glob_matches(filter, name),
    }
}

fn is(instance: &InstanceFull, key: &str, values: &[String]) -> bool {
    let inner = &instance.instance;
    let actual: Vec<String> = match key {
        "name" => vec![inner.name.clone()],
        "type" => vec![inner.kind.name().to_owned()],
        "status" | "state" => vec![inner.status.clone()],
        "architecture" => vec![inner.architecture.clone()],
        "description" => vec![inner.description.clone()],
        "location" => vec![inner.location.clone()],
        "project" => vec![inner.project.clone()],
        "ephemeral" => vec![inner.ephemeral.to_string()],
        "profiles" => inner.profiles.clone(),
        "ipv4" => addresses(instance, "inet"),
        "ipv6" => addresses(instance, "inet6"),
        _ => inner.expanded_config.get(key).cloned().into_iter().collect(),
    };
    values.iter().any(|value| match value.as_str() {
        // "user.x=" asks for instances that lack the key.
        "" => actual.iter().all(String::is_empty),
        value => actual.iter().any(|actual| glob_matches(&value.to_lowercase(), &actual.to_lowercase())),
    })
}

fn addresses(instance: &InstanceFull, family: &str) -> Vec<String> {
    let network = instance.state.as_ref().and_then(|state| state.network.as_ref());
    network
        .into_iter()
        .flat_map(|links| links.values())
        .flat_map(|link| global(link, family))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str, status: &str, owner: &str) -> InstanceFull {
        let mut instance = InstanceFull::default();
        instance.instance.name = name.into();
        instance.instance.status = status.into();
        if !owner.is_empty() {
            instance.instance.expanded_config.insert("user.owner".into(), owner.into());
        }
        instance
    }

    fn shown(filters: &[&str], instance: &InstanceFull) -> bool {
        let filters: Vec<Filter> = filters.iter().map(|text| Filter::parse(text).unwrap()).collect();
        accepts(&filters, instance)
    }

    #[test]
    fn names_are_alternatives() {
        let web = instance("web-1", "Running", "");
        assert!(shown(&[], &web));
        assert!(shown(&["web"], &web));
        assert!(shown(&["db", "web"], &web));
        assert!(shown(&["*-1"], &web));
        assert!(shown(&["local:web"], &web));
        assert!(shown(&["^web-1$"], &web));
        assert!(!shown(&["^web$"], &web));
        assert!(!shown(&["db"], &web));
    }

    #[test]
    fn conditions_must_all_hold() {
        let web = instance("web-1", "Running", "eva");
        assert!(shown(&["status=running"], &web));
        assert!(shown(&["status=stopped,running", "user.owner=e*"], &web));
        assert!(!shown(&["status=running", "user.owner=adam"], &web));
        assert!(!shown(&["user.owner="], &web));
        assert!(shown(&["user.owner="], &instance("x", "Stopped", "")));
        assert!(Filter::parse("=x").is_err());
    }
}
