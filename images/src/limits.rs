//! What an image may cost at most.
//!
//! An image is a stranger's archive; a few kilobytes of it can ask for exabytes. Every count below is checked while
//! unpacking, before the cost is paid.

/// Upper bounds on an image; the defaults are generous for real system images.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of file content in all (holes in sparse files do not count). Default 64 GiB.
    pub max_bytes: u64,
    /// The apparent size of one file, holes included. Default 4 TiB.
    pub max_file_size: u64,
    /// Number of entries, of every kind. Default 4 million.
    pub max_entries: u64,
    /// Decompressed bytes per compressed byte, applied once [`Limits::ratio_free_bytes`] are out. Default 400.
    pub max_ratio: u64,
    /// Decompressed bytes that no ratio applies to. Default 512 MiB.
    pub ratio_free_bytes: u64,
    /// Length of an entry's path, in bytes. Default 4096 (`PATH_MAX`).
    pub max_path: usize,
    /// Components in an entry's path. Default 256.
    pub max_depth: usize,
    /// Size of `metadata.yaml`, in bytes. Default 1 MiB.
    pub max_metadata: u64,
    /// Size of all files under `templates/`, in bytes. Default 16 MiB.
    pub max_templates: u64,
    /// Size of one extended header (PAX records, long names), in bytes. Default 1 MiB.
    pub max_header: u64,
    /// Size of one extended attribute's value, in bytes. Default 64 KiB (`XATTR_SIZE_MAX`).
    pub max_xattr: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_bytes: 64 << 30,
            max_file_size: 4 << 40,
            max_entries: 4_000_000,
            max_ratio: 400,
            ratio_free_bytes: 512 << 20,
            max_path: 4096,
            max_depth: 256,
            max_metadata: 1 << 20,
            max_templates: 16 << 20,
            max_header: 1 << 20,
            max_xattr: 64 << 10,
        }
    }
}
