//! Images.
pub mod error;
pub mod fingerprint;
pub mod limits;
pub mod metadata;
pub mod observe;
pub use error::{ImageError, Result};
pub use fingerprint::{HashingWriter, fingerprint, is_fingerprint};
pub use limits::Limits;
pub use metadata::{Metadata, TemplateSpec, TemplateTrigger};
pub use observe::{Observer, Phase, Progress};
