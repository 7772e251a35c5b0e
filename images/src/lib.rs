//! Images.
mod acl;
pub mod build;
mod command;
pub mod compress;
mod decompress;
pub mod disk;
pub mod entry;
pub mod error;
pub mod fingerprint;
pub mod format;
pub mod limits;
pub mod metadata;
pub mod observe;
pub mod pack;
pub mod squashfs;
pub mod tar;
pub mod template;
mod tree;
pub mod unpack;
pub use build::{BuildOptions, Built, Recipe, build, find_recipe, recipes};
pub use compress::Compress;
pub use error::{ImageError, Result};
pub use fingerprint::{HashingWriter, fingerprint, is_fingerprint};
pub use format::{Compression, ImageFormat, detect_file};
pub use limits::Limits;
pub use metadata::{Metadata, TemplateSpec, TemplateTrigger};
pub use observe::{Observer, Phase, Progress};
pub use pack::{
    PackSource, Packed, PackedTree, TreeOptions, pack, pack_archive, pack_split, pack_tree, read_templates,
};
pub use template::{RenderedFile, TemplateContext, apply_templates};
pub use tree::TreeStats;
pub use unpack::{ImageFiles, UnpackOptions, Unpacked, read_metadata, unpack};
