//! `metadata.yaml`: what an image says about itself.
//!
//! The document is Incus' `ImageMetadata`, field for field, so that an image of one is an image of the other. The same
//! type serves the API's `…/metadata` resources as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ImageError, Result};

/// The content of `metadata.yaml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// The machine architecture by its kernel name, e.g. `x86_64`.
    #[serde(default)]
    pub architecture: String,
    /// When the image was made, in seconds since 1970.
    #[serde(default)]
    pub creation_date: i64,
    /// When the image should no longer be used, in seconds since 1970; 0 is never.
    #[serde(default)]
    pub expiry_date: i64,
    /// Free text for people and scripts: `os`, `release`, `description`, …
    #[serde(default, deserialize_with = "texts")]
    pub properties: BTreeMap<String, String>,
    /// The files that are written from templates, by their absolute path in the instance.
    #[serde(default, deserialize_with = "null_is_default")]
    pub templates: BTreeMap<String, TemplateSpec>,
}

/// One file of the instance that is made from a template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSpec {
    /// On which occasions it is written.
    #[serde(default, deserialize_with = "null_is_default")]
    pub when: Vec<TemplateTrigger>,
    /// Whether a file that is already there is left alone.
    #[serde(default)]
    pub create_only: bool,
    /// The template's file name under the image's `templates/`.
    #[serde(default)]
    pub template: String,
    /// Values that the template reads as `properties`.
    #[serde(default, deserialize_with = "texts")]
    pub properties: BTreeMap<String, String>,
}

/// The occasions on which a template is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateTrigger {
    /// The instance's first start after it was created.
    Create,
    /// The instance's first start after it was copied.
    Copy,
    /// Every start.
    Start,
    /// The first start after it was renamed.
    Rename,
}

impl TemplateTrigger {
    /// The word that the document uses.
    pub fn as_str(self) -> &'static str {
        match self {
            TemplateTrigger::Create => "create",
            TemplateTrigger::Copy => "copy",
            TemplateTrigger::Start => "start",
            TemplateTrigger::Rename => "rename",
        }
    }
}

/// Go writes an empty map or list as `{}`, `[]` or `null`; all three mean nothing.
fn null_is_default<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A map of texts in which a value of nothing is the empty text.
fn texts<'de, D>(deserializer: D) -> std::result::Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let map = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
    Ok(map.into_iter().flatten().map(|(key, value)| (key, value.unwrap_or_default())).collect())
}

impl Metadata {
    /// Reads and validates a `metadata.yaml`.
    ///
    /// # Errors
    /// [`ImageError::Metadata`] when it is not UTF-8, not YAML of this form, or [`Metadata::validate`] refuses it.
    pub fn from_yaml(bytes: &[u8]) -> Result<Metadata> {
        let text = std::str::from_utf8(bytes).map_err(|_| ImageError::Metadata("is not UTF-8 text".into()))?;
        let metadata: Metadata = serde_saphyr::from_str(text)
            .map_err(|e| ImageError::Metadata(format!("cannot be understood: {}", first_line(&e.to_string()))))?;
        metadata.validate()?;
        Ok(metadata)
    }

    /// The YAML text, in the order and form that [`Metadata::from_yaml`] and Incus read.
    ///
    /// # Errors
    /// [`ImageError::Metadata`] when it is not valid.
    pub fn to_yaml(&self) -> Result<String> {
        self.validate()?;
        serde_saphyr::to_string(self).map_err(|e| ImageError::Metadata(format!("cannot be written: {e}")))
    }

    /// Checks what every user of the document relies on: an architecture of one plain word, dates that are not
    /// negative, template targets that are clean absolute paths, template names that are plain file names.
    ///
    /// # Errors
    /// [`ImageError::Metadata`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<()> {
        let bad = |text: String| Err(ImageError::Metadata(text));
        if self.architecture.is_empty() {
            return bad("has no architecture".into());
        }
        if !self.architecture.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return bad(format!("has the architecture {:?}, which is not a plain word", self.architecture));
        }
        if self.creation_date < 0 || self.expiry_date < 0 {
            return bad("has a negative date".into());
        }
        for (path, spec) in &self.templates {
            if !is_clean_absolute(path) {
                return bad(format!("has a template for {path:?}, which is not a clean absolute path"));
            }
            if !is_template_name(&spec.template) {
                return bad(format!(
                    "names the template {:?} for {path}, which is not a plain file name",
                    spec.template
                ));
            }
        }
        Ok(())
    }
}

/// Whether a string can name a file under `templates/`: one component, no dots-only, at most 255 bytes.
pub fn is_template_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn is_clean_absolute(path: &str) -> bool {
    path.len() > 1
        && path.len() < 4096
        && path.starts_with('/')
        && !path.contains('\0')
        && path[1..].split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("").trim_end_matches([':', '.'])
}

/// The kernel's name of the architecture that this program runs on: `x86_64`, `aarch64`, …
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86" => "i686",
        "arm" => "armv7l",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        other => other,
    }
}

/// The kernel's name for an architecture that may be spelt as Debian or Go spell it; `None` if it is none we know.
pub fn canonical_architecture(name: &str) -> Option<&'static str> {
    Some(match name {
        "x86_64" | "amd64" => "x86_64",
        "aarch64" | "arm64" => "aarch64",
        "i686" | "i386" | "386" => "i686",
        "armv8l" => "armv8l",
        "armv7l" | "armhf" | "arm" => "armv7l",
        "armv6l" | "armel" => "armv6l",
        "ppc64le" | "ppc64el" => "ppc64le",
        "ppc64" => "ppc64",
        "ppc" | "powerpc" => "ppc",
        "s390x" => "s390x",
        "riscv64" => "riscv64",
        "riscv32" => "riscv32",
        "mips" => "mips",
        "mips64" => "mips64",
        "loongarch64" | "loong64" => "loongarch64",
        _ => return None,
    })
}

/// What Debian calls an architecture (`amd64`), from any spelling that [`canonical_architecture`] knows.
pub fn debian_architecture(name: &str) -> Option<&'static str> {
    Some(match canonical_architecture(name)? {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i686" => "i386",
        "armv7l" | "armv8l" => "armhf",
        "armv6l" => "armel",
        "ppc64le" => "ppc64el",
        "loongarch64" => "loong64",
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape that Incus' own build tool writes.
    const DISTROBUILDER: &str = r#"architecture: x86_64
creation_date: 1779062400
expiry_date: 1781654400
properties:
  architecture: amd64
  description: Debian trixie amd64 (20260518_05:24)
  name: debian-trixie-amd64-default-20260518_05:24
  os: debian
  release: trixie
  serial: "20260518_05:24"
  variant: default
templates:
  /etc/hostname:
    when:
    - create
    - copy
    create_only: false
    template: hostname.tpl
    properties: {}
  /etc/hosts:
    when: [create, copy]
    create_only: true
    template: hosts.tpl
    properties: null
"#;

    #[test]
    fn reads_what_incus_writes_and_back() {
        let metadata = Metadata::from_yaml(DISTROBUILDER.as_bytes()).unwrap();
        assert_eq!(metadata.architecture, "x86_64");
        assert_eq!(metadata.properties["serial"], "20260518_05:24");
        assert_eq!(metadata.templates["/etc/hostname"].when, [TemplateTrigger::Create, TemplateTrigger::Copy]);
        assert!(metadata.templates["/etc/hosts"].create_only);
        let again = Metadata::from_yaml(metadata.to_yaml().unwrap().as_bytes()).unwrap();
        assert_eq!(again, metadata);
    }

    #[test]
    fn plain_scalars_stay_the_text_they_are() {
        let text = "architecture: x86_64\nproperties:\n  version: 12.10\n  serial: 20260518\n  lts: true\n  none: ~\n";
        let metadata = Metadata::from_yaml(text.as_bytes()).unwrap();
        let values: Vec<_> = metadata.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(values, [("lts", "true"), ("none", ""), ("serial", "20260518"), ("version", "12.10")]);
        // What looks like a number must come back as the same text.
        assert_eq!(Metadata::from_yaml(metadata.to_yaml().unwrap().as_bytes()).unwrap(), metadata);
    }

    #[test]
    fn unknown_fields_and_missing_maps_are_fine() {
        let metadata = Metadata::from_yaml(b"architecture: aarch64\nfuture: [1, 2]\n").unwrap();
        assert!(metadata.properties.is_empty() && metadata.templates.is_empty());
    }

    #[test]
    fn refuses_with_a_sentence() {
        let spec = |path: &str, name: &str| {
            format!("architecture: x86_64\ntemplates:\n  \"{path}\":\n    when: [create]\n    template: \"{name}\"\n")
        };
        let table: Vec<(String, &str)> = vec![
            ("properties: {}\n".into(), "has no architecture"),
            ("architecture: \"x86 64\"\n".into(), "not a plain word"),
            ("architecture: x86_64\ncreation_date: -1\n".into(), "negative date"),
            ("architecture: [\n".into(), "cannot be understood"),
            ("- a\n- b\n".into(), "cannot be understood"),
            ("architecture: x86_64\ntemplates:\n  /a: {when: [never], template: t}\n".into(), "cannot be understood"),
            (spec("etc/hostname", "a"), "not a clean absolute path"),
            (spec("/etc/../../shadow", "a"), "not a clean absolute path"),
            (spec("/", "a"), "not a clean absolute path"),
            (spec("/etc/hostname", "../a"), "not a plain file name"),
            (spec("/etc/hostname", ""), "not a plain file name"),
            (spec("/etc/hostname", ".."), "not a plain file name"),
        ];
        for (text, wanted) in table {
            let error = Metadata::from_yaml(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("metadata.yaml ") && error.contains(wanted), "{text:?}: {error}");
        }
        assert!(Metadata::from_yaml(b"\xff\xfe").unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn an_alias_bomb_is_refused_quickly() {
        let mut text = String::from("architecture: x86_64\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let started = std::time::Instant::now();
        let _ = Metadata::from_yaml(text.as_bytes()); // either answer will do; taking forever will not
        assert!(started.elapsed().as_secs() < 5);
    }

    #[test]
    fn architectures() {
        assert_eq!(canonical_architecture("amd64"), Some("x86_64"));
        assert_eq!(debian_architecture("aarch64"), Some("arm64"));
        assert_eq!(canonical_architecture("vax"), None);
        assert!(canonical_architecture(host_architecture()).is_some());
    }
}
