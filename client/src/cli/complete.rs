//! Completion of names that only the daemon knows.
//!
//! The shell runs `duet` itself for it (see `duet completion`). A daemon that does not answer leaves the user with no
//! suggestions; nothing is printed.

use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use serde_json::Value;

use super::{directory_from_environment, from_environment};
use crate::{Client, Url};

/// Instances' names.
pub(crate) fn instances() -> ArgValueCandidates {
    ArgValueCandidates::new(|| names("instances"))
}

/// Profiles' names.
pub(crate) fn profiles() -> ArgValueCandidates {
    ArgValueCandidates::new(|| names("profiles"))
}

/// Networks' names.
pub(crate) fn networks() -> ArgValueCandidates {
    ArgValueCandidates::new(|| names("networks"))
}

/// Storage pools' names.
pub(crate) fn pools() -> ArgValueCandidates {
    ArgValueCandidates::new(|| names("storage-pools"))
}

/// Images' aliases.
pub(crate) fn images() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let url = Url::new(&["1.0", "images", "aliases"]).query("recursion", "1");
        candidates(ask(url), |alias| alias.get("name")?.as_str())
    })
}

/// What can be built.
pub(crate) fn recipes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| RECIPES.iter().map(CompletionCandidate::new).collect())
}

/// The recipes that come with Duet.
pub(crate) const RECIPES: [&str; 5] = ["debian/13", "debian/12", "ubuntu/24.04", "ubuntu/22.04", "busybox"];

fn names(collection: &str) -> Vec<CompletionCandidate> {
    // The last part of "/1.0/instances/c1".
    candidates(ask(Url::new(&["1.0", collection])), |url| url.as_str()?.rsplit('/').next())
}

fn candidates(values: Vec<Value>, name: fn(&Value) -> Option<&str>) -> Vec<CompletionCandidate> {
    values.iter().filter_map(name).map(CompletionCandidate::new).collect()
}

fn ask(url: Url) -> Vec<Value> {
    let socket = from_environment("DUET_SOCKET").unwrap_or_else(|| directory_from_environment().join("unix.socket"));
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    runtime.block_on(Client::new(socket).get(&url)).unwrap_or_default()
}
