//! Writing a cpio archive of the form that kernels unpack ("newc", Linux' Documentation/driver-api/early-userspace/
//! buffer-format.rst). Written here because it is these few lines; crates for it bring reading, links and owners.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const REGULAR: u32 = 0o100_000;

/// An archive that is being written. Owner and times of all entries are zero.
pub(super) struct Archive<W> {
    out: W,
    entries: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, entries: 0, written: 0 }
    }

    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY, 2, (0, 0), &[])
    }

    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE, 1, (major, minor), &[])
    }

    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | permissions, 1, (0, 0), content)
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[])?;
        self.out.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_length = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // Number, mode, owner, group, links, time, length, device, the device that it is, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, name_length, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.put(b"070701")?;
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }
}
