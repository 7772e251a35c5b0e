//! Recipes: what an image is made of, as YAML beside the code.
//!
//! A recipe names a source (a distribution's packages, or the machine's static busybox), the files that make a
//! container of it, and the templates. What all roots with systemd share is in `recipes/common/`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::metadata::{Metadata, TemplateSpec, TemplateTrigger};
use crate::{ImageError, Result};

/// The recipes that come with the program.
const BUILT_IN: &[&str] = &[
    include_str!("../../recipes/debian-13.yaml"),
    include_str!("../../recipes/debian-12.yaml"),
    include_str!("../../recipes/ubuntu-24.04.yaml"),
    include_str!("../../recipes/ubuntu-22.04.yaml"),
    include_str!("../../recipes/busybox.yaml"),
];

/// What recipes can have in common, by the name they call it.
const COMMON: &[(&str, &str)] = &[("systemd", include_str!("../../recipes/common/systemd.yaml"))];

/// Archive keys that come with the program, by name.
const KEYS: &[(&str, &str)] = &[("ubuntu-archive-2018", include_str!("../../recipes/keys/ubuntu-archive-2018.asc"))];

/// How to build one image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What users call it: `debian/13`.
    pub name: String,
    /// Other names: `debian/trixie`.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The distribution's name, as people write it.
    pub os: String,
    /// The release's code name.
    pub release: String,
    /// The release's number; may be empty.
    pub version: String,
    /// Name of the shared part, if it has one.
    #[serde(default)]
    common: Option<String>,
    /// The distribution's packages, for a root made of those.
    #[serde(default)]
    pub(super) apt: Option<AptRecipe>,
    /// For a root made of the machine's busybox.
    #[serde(default)]
    pub(super) busybox: Option<BusyboxRecipe>,
    #[serde(flatten)]
    pub(super) content: Content,
}

/// Files, templates and units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Content {
    /// systemd units to enable.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Files to write, in order.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// Paths to remove; the last component may have `*`.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Templates of the image.
    #[serde(default)]
    pub templates: Vec<TemplateFile>,
}

/// A root made of a Debian-like distribution's packages.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AptRecipe {
    pub vendor: Vendor,
    /// The suite's name in the archive.
    pub suite: String,
    /// The archive's keys, on the machine that builds.
    pub keyring: String,
    /// The package that brings them, where there is one.
    #[serde(default)]
    pub keyring_package: String,
    /// Name of a key that comes with the program, for machines that have no such keyring.
    #[serde(default)]
    pub key: Option<String>,
    /// Whether /usr has to be merged by a hook, because the suite is older than packages that do it.
    #[serde(default)]
    pub merge_usr: bool,
    pub components: Vec<String>,
    /// Packages beyond the minimal base.
    pub packages: Vec<String>,
}

/// Whose archive a suite is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Vendor {
    Debian,
    Ubuntu,
}

/// A root made of the machine's static busybox.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BusyboxRecipe {}

/// A file, or a symbolic link when `link` is given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSpec {
    pub path: String,
    #[serde(default)]
    pub content: String,
    #[serde(default)]
    pub link: Option<String>,
    #[serde(default = "usual_mode")]
    pub mode: u32,
}

fn usual_mode() -> u32 {
    0o644
}

/// A template and the file it makes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateFile {
    pub path: String,
    pub when: Vec<TemplateTrigger>,
    pub name: String,
    pub content: String,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`ImageError::Recipe`] when it is not of this form.
    pub fn from_yaml(text: &str) -> Result<Recipe> {
        let problem = |name: &str, problem: String| ImageError::Recipe { name: name.to_owned(), problem };
        let mut recipe: Recipe =
            serde_saphyr::from_str(text).map_err(|e| problem("given", format!("cannot be understood: {e}")))?;
        if recipe.apt.is_some() == recipe.busybox.is_some() {
            return Err(problem(&recipe.name, "should have either \"apt\" or \"busybox\"".into()));
        }
        if let Some(common) = recipe.common.take() {
            let Some((_, text)) = COMMON.iter().find(|(name, _)| *name == common) else {
                return Err(problem(&recipe.name, format!("wants the common part {common:?}, which does not exist")));
            };
            let shared: Content =
                serde_saphyr::from_str(text).map_err(|e| problem(&common, format!("cannot be understood: {e}")))?;
            recipe.content = shared.followed_by(recipe.content);
        }
        Ok(recipe)
    }

    /// Whether this is the recipe that a user's word means: `debian/13`, `debian/trixie`, `debian-13`.
    pub fn answers_to(&self, word: &str) -> bool {
        std::iter::once(&self.name).chain(&self.aliases).any(|name| name == word || name.replace('/', "-") == word)
    }

    /// What the image says about itself when it is built at a time (seconds since 1970) for an architecture.
    pub(super) fn metadata(
        &self,
        architecture: &str,
        debian_architecture: &str,
        created: i64,
        serial: &str,
    ) -> Metadata {
        let words: Vec<&str> =
            [self.os.as_str(), &self.version, &self.release].into_iter().filter(|w| !w.is_empty()).collect();
        let mut words = words.join(" ");
        if self.busybox.is_some() {
            words.clone_from(&self.os);
        }
        let properties = [
            ("architecture", debian_architecture.to_owned()),
            ("description", format!("{words} {debian_architecture} ({serial})")),
            ("name", format!("{}-{debian_architecture}-default-{serial}", self.name.replace('/', "-"))),
            ("os", self.os.clone()),
            ("release", self.release.clone()),
            ("serial", serial.to_owned()),
            ("variant", "default".to_owned()),
        ];
        let mut properties: BTreeMap<String, String> = properties.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        if !self.version.is_empty() {
            properties.insert("version".into(), self.version.clone());
        }
        let spec = |template: &TemplateFile| TemplateSpec {
            when: template.when.clone(),
            template: template.name.clone(),
            ..TemplateSpec::default()
        };
        Metadata {
            architecture: architecture.to_owned(),
            creation_date: created,
            expiry_date: 0,
            properties,
            templates: self.content.templates.iter().map(|t| (t.path.clone(), spec(t))).collect(),
        }
    }

    /// The template files.
    pub(super) fn templates(&self) -> BTreeMap<String, Vec<u8>> {
        self.content.templates.iter().map(|t| (t.name.clone(), t.content.clone().into_bytes())).collect()
    }
}

impl AptRecipe {
    /// The key that comes with the program, as armored text.
    pub(super) fn own_key(&self) -> Option<&'static str> {
        let name = self.key.as_ref()?;
        KEYS.iter().find(|(known, _)| known == name).map(|(_, key)| *key)
    }
}

impl Content {
    fn followed_by(mut self, other: Content) -> Content {
        self.enable.extend(other.enable);
        self.files.extend(other.files);
        self.remove.extend(other.remove);
        self.templates.extend(other.templates);
        self
    }
}

/// The recipes that come with the program.
///
/// # Errors
/// Never for the recipes as they are shipped, which the tests read.
pub fn recipes() -> Result<Vec<Recipe>> {
    BUILT_IN.iter().map(|text| Recipe::from_yaml(text)).collect()
}

/// The recipe that a user's word means.
///
/// # Errors
/// [`ImageError::UnknownRecipe`] with the names that there are.
pub fn find_recipe(word: &str) -> Result<Recipe> {
    let all = recipes()?;
    let known = all.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
    all.into_iter().find(|r| r.answers_to(word)).ok_or(ImageError::UnknownRecipe { name: word.to_owned(), known })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_ones_are_sound() {
        let all = recipes().unwrap();
        assert_eq!(
            all.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
            ["debian/13", "debian/12", "ubuntu/24.04", "ubuntu/22.04", "busybox"]
        );
        for recipe in all {
            let metadata = recipe.metadata("x86_64", "amd64", 1_700_000_000, "20231114");
            metadata.validate().unwrap();
            let templates = recipe.templates();
            for spec in metadata.templates.values() {
                assert!(templates.contains_key(&spec.template), "{}: {}", recipe.name, spec.template);
            }
            if let Some(apt) = &recipe.apt {
                assert_eq!(apt.key.is_some(), apt.own_key().is_some(), "{}", recipe.name);
            }
            for file in &recipe.content.files {
                assert!(file.path.starts_with('/') && !file.path.contains(".."), "{}: {}", recipe.name, file.path);
                assert!(file.link.is_none() || file.content.is_empty(), "{}: {}", recipe.name, file.path);
            }
        }
    }

    #[test]
    fn found_by_any_name() {
        for word in ["debian/13", "debian/trixie", "debian-13"] {
            assert_eq!(find_recipe(word).unwrap().name, "debian/13");
        }
        let error = find_recipe("arch").unwrap_err().to_string();
        assert!(error.contains("\"arch\"") && error.contains("debian/13, debian/12"), "{error}");
    }

    #[test]
    fn what_it_says_about_itself() {
        let debian = find_recipe("debian/13").unwrap().metadata("x86_64", "amd64", 5, "20261123");
        assert_eq!(debian.properties["description"], "Debian 13 trixie amd64 (20261123)");
        assert_eq!(debian.properties["name"], "debian-13-amd64-default-20261123");
        let busybox = find_recipe("busybox").unwrap().metadata("x86_64", "amd64", 5, "20261123");
        assert_eq!(busybox.properties["description"], "BusyBox amd64 (20261123)");
    }

    #[test]
    fn nonsense_is_named() {
        let both = "name: x\nos: X\nrelease: x\nversion: ''\nbusybox: {}\ncommon: nope\n";
        assert!(Recipe::from_yaml(both).unwrap_err().to_string().contains("\"nope\""));
        assert!(
            Recipe::from_yaml("name: x\nos: X\nrelease: x\nversion: ''\n").unwrap_err().to_string().contains("either")
        );
    }
}
