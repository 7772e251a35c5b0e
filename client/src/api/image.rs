//! Images and their aliases.

use std::collections::BTreeMap;

use super::{Timestamp, is_default};

wire! {
    /// `GET /1.0/images/{fingerprint}`.
    pub struct Image {
        /// Whether it follows its source.
        pub auto_update: bool,
        /// Its properties, such as "os" and "release".
        pub properties: BTreeMap<String, String>,
        /// Whether untrusted clients may have it.
        pub public: bool,
        /// When it expires; the zero time for never.
        pub expires_at: Timestamp,
        /// The profiles for instances made from it.
        pub profiles: Vec<String>,
        /// Its aliases.
        pub aliases: Vec<ImageAlias>,
        /// The architecture.
        pub architecture: String,
        /// Whether it was fetched for an instance and may go again.
        pub cached: bool,
        /// The file's name when it was imported.
        pub filename: String,
        /// SHA-256 over the image's file or files, in hex.
        pub fingerprint: String,
        /// The size of its files, in bytes.
        pub size: i64,
        /// Where it is updated from; left out without a source.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub update_source: Option<ImageSource>,
        /// "container" or "virtual-machine".
        #[serde(rename = "type")]
        pub kind: String,
        /// When it was made.
        pub created_at: Timestamp,
        /// When an instance was last made from it.
        pub last_used_at: Timestamp,
        /// When it came to this server.
        pub uploaded_at: Timestamp,
        /// The project it is in; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub project: String,
    }

    /// Where an image is updated from.
    pub struct ImageSource {
        /// The alias there.
        pub alias: String,
        /// The server's certificate.
        pub certificate: String,
        /// The protocol, such as "simplestreams".
        pub protocol: String,
        /// The server's URL.
        pub server: String,
        /// "container" or "virtual-machine".
        pub image_type: String,
    }

    /// An alias, seen from its image; also how aliases are given to a new image.
    pub struct ImageAlias {
        /// Its name.
        pub name: String,
        /// Words for people.
        pub description: String,
    }

    /// `PUT /1.0/images/{fingerprint}`.
    pub struct ImagePut {
        /// Whether it follows its source.
        pub auto_update: bool,
        /// Its properties.
        pub properties: BTreeMap<String, String>,
        /// Whether untrusted clients may have it.
        pub public: bool,
        /// When it expires; the zero time for never.
        pub expires_at: Timestamp,
        /// The profiles for instances made from it.
        pub profiles: Vec<String>,
    }

    /// `PATCH /1.0/images/{fingerprint}`: only what is present changes; properties are merged.
    pub struct ImagePatch {
        /// Whether it follows its source.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub auto_update: Option<bool>,
        /// Properties to add or change.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub properties: Option<BTreeMap<String, String>>,
        /// Whether untrusted clients may have it.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub public: Option<bool>,
        /// When it expires.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub expires_at: Option<Timestamp>,
        /// The profiles, as a whole.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub profiles: Option<Vec<String>>,
    }

    /// `POST /1.0/images` with a JSON body. An import sends the file itself instead, with the same facts in the
    /// headers named `HEADER_IMAGE_*`.
    pub struct ImagesPost {
        /// Whether it follows its source.
        pub auto_update: bool,
        /// Its properties; `null` for what its source says.
        pub properties: Option<BTreeMap<String, String>>,
        /// Whether untrusted clients may have it.
        pub public: bool,
        /// When it expires; the zero time for never.
        pub expires_at: Timestamp,
        /// The profiles for instances made from it.
        pub profiles: Option<Vec<String>>,
        /// The file's name.
        pub filename: String,
        /// Where it comes from.
        pub source: Option<ImagesPostSource>,
        /// How to compress it: "gzip", "xz", "zstd", "none", ...; empty for the server's default.
        pub compression_algorithm: String,
        /// Aliases to give it.
        pub aliases: Option<Vec<ImageAlias>>,
        /// "unified" or "split"; left out for the default.
        #[serde(skip_serializing_if = "is_default")]
        pub format: String,
    }

    /// Where a new image comes from.
    pub struct ImagesPostSource {
        /// The alias at a remote server (type "image").
        pub alias: String,
        /// The remote server's certificate.
        pub certificate: String,
        /// The remote server's protocol.
        pub protocol: String,
        /// The remote server's URL.
        pub server: String,
        /// "container" or "virtual-machine".
        pub image_type: String,
        /// "pull" or "push".
        pub mode: String,
        /// "instance", "snapshot", "image", "url" or ours, "build".
        #[serde(rename = "type")]
        pub kind: String,
        /// Where to fetch it (type "url").
        pub url: String,
        /// "instance" or "instance/snapshot" (types "instance" and "snapshot").
        pub name: String,
        /// The image at a remote server (type "image").
        pub fingerprint: String,
        /// The remote server's secret.
        pub secret: String,
        /// The source's project.
        pub project: String,
        /// What to build, such as "debian/13" (type "build"; extension `duet_image_build`).
        #[serde(skip_serializing_if = "is_default")]
        pub recipe: String,
        /// The package mirror to build from; empty for the recipe's own choice (type "build").
        #[serde(skip_serializing_if = "is_default")]
        pub mirror: String,
    }

    /// `GET /1.0/images/aliases/{name}`.
    pub struct ImageAliasesEntry {
        /// Words for people.
        pub description: String,
        /// The fingerprint it points at.
        pub target: String,
        /// Its name.
        pub name: String,
        /// The image's type: "container" or "virtual-machine".
        #[serde(rename = "type")]
        pub kind: String,
    }

    /// `POST /1.0/images/aliases`.
    pub struct ImageAliasesPost {
        /// Words for people.
        pub description: String,
        /// The fingerprint it points at, or a prefix of it.
        pub target: String,
        /// Its name.
        pub name: String,
        /// Usually empty; the image's type is what counts.
        #[serde(rename = "type")]
        pub kind: String,
    }

    /// `PUT /1.0/images/aliases/{name}`.
    pub struct ImageAliasesEntryPut {
        /// Words for people.
        pub description: String,
        /// The fingerprint it points at.
        pub target: String,
    }

    /// `PATCH /1.0/images/aliases/{name}`: only what is present changes.
    pub struct ImageAliasesEntryPatch {
        /// Words for people.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub description: Option<String>,
        /// The fingerprint it points at.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub target: Option<String>,
    }

    /// `POST /1.0/images/aliases/{name}`: rename.
    pub struct ImageAliasesEntryPost {
        /// The new name.
        pub name: String,
    }

    /// `GET /1.0/instances/{name}/metadata`: the image's `metadata.yaml`, kept with the instance.
    pub struct ImageMetadata {
        /// The architecture.
        pub architecture: String,
        /// When the image was made, in seconds since the epoch.
        pub creation_date: i64,
        /// When it expires, in seconds since the epoch; 0 for never.
        pub expiry_date: i64,
        /// Its properties.
        pub properties: BTreeMap<String, String>,
        /// Templates by the path that they write.
        pub templates: BTreeMap<String, ImageMetadataTemplate>,
    }

    /// `PATCH /1.0/instances/{name}/metadata`: only what is present changes; properties and templates are merged.
    pub struct ImageMetadataPatch {
        /// The architecture.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub architecture: Option<String>,
        /// When the image was made, in seconds since the epoch.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub creation_date: Option<i64>,
        /// When it expires, in seconds since the epoch; 0 for never.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub expiry_date: Option<i64>,
        /// Properties to add or change.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub properties: BTreeMap<String, String>,
        /// Templates to add or change, by the path that they write.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub templates: BTreeMap<String, ImageMetadataTemplate>,
    }

    /// A file that is written from a template.
    pub struct ImageMetadataTemplate {
        /// When: "create", "copy", "rename", "start".
        pub when: Vec<String>,
        /// Whether an existing file stays as it is.
        pub create_only: bool,
        /// The template's file name.
        pub template: String,
        /// What the template gets.
        pub properties: BTreeMap<String, String>,
        /// The owner's id as text; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub uid: String,
        /// The group's id as text; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub gid: String,
        /// The mode as octal text; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub mode: String,
    }
}

/// Import: the file's name. Split images send multipart/form-data with the parts "metadata" and "rootfs" (or
/// "rootfs.img") instead of one body. `lxc` spells these headers `X-LXD-`.
pub const HEADER_IMAGE_FILENAME: &str = "x-incus-filename";
/// Import: "true" for a public image.
pub const HEADER_IMAGE_PUBLIC: &str = "x-incus-public";
/// Import: extra properties, as an URL query.
pub const HEADER_IMAGE_PROPERTIES: &str = "x-incus-properties";
/// Import: the profiles, as an URL query with the key `profile`, repeated.
pub const HEADER_IMAGE_PROFILES: &str = "x-incus-profiles";
/// Import: the aliases, as an URL query with the key `alias`, repeated.
pub const HEADER_IMAGE_ALIASES: &str = "x-incus-aliases";
/// Import: the fingerprint that the sender expects.
pub const HEADER_IMAGE_FINGERPRINT: &str = "x-incus-fingerprint";
