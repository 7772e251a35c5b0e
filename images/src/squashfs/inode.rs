//! Inodes: a common head, then a body by type, in a basic and an extended form.

use super::blocks::{Blocks, Cursor, ReadAt};
use crate::entry::Timestamp;
use crate::{ImageError, Result};

/// Value of an index that points at nothing (`SQUASHFS_INVALID_FRAG`, `SQUASHFS_INVALID_XATTR`).
const NONE: u32 = u32::MAX;

/// One file of the file system.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub mode: u32,
    /// Index into the id table.
    pub uid: u16,
    /// Index into the id table.
    pub gid: u16,
    pub mtime: Timestamp,
    pub links: u32,
    /// Index into the extended attribute table.
    pub xattr: Option<u32>,
    pub body: Body,
}

/// What differs by type.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// Its names are at `block` and `offset` of the directory table and take `size` - 3 bytes.
    Directory {
        block: u32,
        offset: u16,
        size: u32,
    },
    /// Its blocks start at `start`; its end may be in fragment (number, offset). The list of block sizes follows.
    File {
        start: u64,
        size: u64,
        fragment: Option<(u32, u32)>,
    },
    Symlink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

impl Inode {
    /// Reads the inode under the cursor, which is left behind it (for a file: at its list of block sizes).
    pub(super) fn read<S: ReadAt>(cursor: &mut Cursor, blocks: &mut Blocks<S>, name: &str) -> Result<Inode> {
        let kind = cursor.u16(blocks, name)?;
        let mode = u32::from(cursor.u16(blocks, name)?) & 0o7777;
        let uid = cursor.u16(blocks, name)?;
        let gid = cursor.u16(blocks, name)?;
        let mtime = Timestamp { seconds: cursor.u32(blocks, name)?.into(), nanoseconds: 0 };
        let _number = cursor.u32(blocks, name)?;
        let mut inode = Inode { mode, uid, gid, mtime, links: 1, xattr: None, body: Body::Fifo };
        match kind {
            1 | 8 => inode.directory(kind == 8, cursor, blocks, name)?,
            2 | 9 => inode.file(kind == 9, cursor, blocks, name)?,
            3..=7 | 10..=14 => inode.other(kind, cursor, blocks, name)?,
            _ => return Err(ImageError::Damaged(format!("{name:?} is of an unknown type ({kind})"))),
        }
        Ok(inode)
    }

    fn directory<S: ReadAt>(&mut self, extended: bool, c: &mut Cursor, b: &mut Blocks<S>, name: &str) -> Result<()> {
        // A directory's links count its subdirectories; they are not other names of it.
        self.body = if extended {
            let _links = c.u32(b, name)?;
            let size = c.u32(b, name)?;
            let block = c.u32(b, name)?;
            let _parent = c.u32(b, name)?;
            let _indexes = c.u16(b, name)?;
            let offset = c.u16(b, name)?;
            self.xattr = index(c.u32(b, name)?);
            Body::Directory { block, offset, size }
        } else {
            let block = c.u32(b, name)?;
            let _links = c.u32(b, name)?;
            let size = c.u16(b, name)?.into();
            let offset = c.u16(b, name)?;
            Body::Directory { block, offset, size }
        };
        Ok(())
    }

    fn file<S: ReadAt>(&mut self, extended: bool, c: &mut Cursor, b: &mut Blocks<S>, name: &str) -> Result<()> {
        let (start, size, fragment, offset);
        if extended {
            start = c.u64(b, name)?;
            size = c.u64(b, name)?;
            let _holes = c.u64(b, name)?;
            self.links = c.u32(b, name)?;
            fragment = c.u32(b, name)?;
            offset = c.u32(b, name)?;
            self.xattr = index(c.u32(b, name)?);
        } else {
            start = c.u32(b, name)?.into();
            fragment = c.u32(b, name)?;
            offset = c.u32(b, name)?;
            size = c.u32(b, name)?.into();
        }
        self.body = Body::File { start, size, fragment: index(fragment).map(|number| (number, offset)) };
        Ok(())
    }

    fn other<S: ReadAt>(&mut self, kind: u16, c: &mut Cursor, b: &mut Blocks<S>, name: &str) -> Result<()> {
        self.links = c.u32(b, name)?;
        self.body = match kind {
            3 | 10 => {
                let length = c.u32(b, name)?;
                if length == 0 || length >= 4096 {
                    return Err(ImageError::Damaged(format!("{name:?} is a link with an impossible target")));
                }
                let target = c.bytes(b, length as usize, name)?;
                if target.contains(&0) {
                    return Err(ImageError::Damaged(format!("{name:?} is a link with an impossible target")));
                }
                Body::Symlink { target }
            }
            4 | 5 | 11 | 12 => {
                // The kernel's new_decode_dev: 12 bits of major between 8 and 12 bits of minor.
                let device = c.u32(b, name)?;
                let (major, minor) = ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00));
                if matches!(kind, 5 | 12) {
                    Body::CharDevice { major, minor }
                } else {
                    Body::BlockDevice { major, minor }
                }
            }
            6 | 13 => Body::Fifo,
            _ => Body::Socket,
        };
        if kind >= 10 {
            self.xattr = index(c.u32(b, name)?);
        }
        Ok(())
    }
}

fn index(value: u32) -> Option<u32> {
    (value != NONE).then_some(value)
}
