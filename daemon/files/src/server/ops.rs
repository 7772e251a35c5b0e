//! The operations.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RenameFlags, StatVfsMountFlags, fstatvfs, fsync, ftruncate, mkdirat, readlinkat,
    renameat_with, symlinkat, unlinkat,
};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use super::attributes::{Changer, stat, stat_entry};
use super::enter::descriptor_name;
use super::handles::{Handles, Open};
use super::remove;
use super::resolve::{Last, Root, open_child};
use super::{Failure, Outcome};
use crate::path::WirePath;
use crate::protocol::{
    Changes, DirEntry, FailureKind, FileKind, MAX_BATCH, MAX_DATA, Op, OpenFlags, Owner, Reply, Space,
};

/// How often opening a file begins anew because it came or went in between.
const OPEN_ATTEMPTS: usize = 100;

/// Appended by the kernel to the path of something that has no name any more (proc_pid_fd(5)).
const DELETED: &[u8] = b" (deleted)";

/// The state of one session.
pub(super) struct Service {
    root: Root,
    descriptors: OwnedFd,
    id_limit: Option<u32>,
    handles: Handles,
    buffer: Box<[u8]>,
}

impl Service {
    pub fn new(root: OwnedFd, descriptors: OwnedFd, id_limit: Option<u32>) -> Self {
        let buffer = vec![0; MAX_DATA].into_boxed_slice();
        Self { root: Root(root), descriptors, id_limit, handles: Handles::default(), buffer }
    }

    /// Does one operation; reading is apart, since its answer carries data.
    pub fn run(&mut self, op: Op, data: &[u8]) -> Outcome<Reply> {
        match op {
            Op::Open { path, flags, mode, owner } => self.open(&path, flags, mode, owner),
            Op::Read { .. } => Err(Failure::of(FailureKind::Unsupported)),
            Op::Write { handle, offset } => self.write(handle, offset, data),
            Op::Sync { handle } => done(fsync(self.handles.file(handle)?)),
            Op::Close { handle } => self.handles.close(handle).map(|()| Reply::Done),
            Op::Stat { path, follow } => Ok(Reply::Stat(stat(self.root.hold(&path, last(follow))?)?)),
            Op::StatHandle { handle } => match self.handles.get(handle)? {
                Open::File(file) => Ok(Reply::Stat(stat(file)?)),
                Open::Dir(dir) => Ok(Reply::Stat(stat(dir.fd()?)?)),
            },
            Op::Change { path, follow, changes } => {
                let held = self.root.hold(&path, last(follow))?;
                self.changer().change(held, &changes).map(|()| Reply::Done)
            }
            Op::ChangeHandle { handle, changes } => self.change_handle(handle, &changes),
            Op::OpenDir { path } => self.open_dir(&path),
            Op::ReadDir { handle } => self.read_dir(handle),
            Op::MakeDir { path, mode, owner } => self.make_dir(&path, mode, owner),
            Op::Remove { path } => {
                let place = self.root.place(&path)?;
                done(unlinkat(place.parent, place.name, AtFlags::empty()))
            }
            Op::RemoveDir { path } => {
                let place = self.root.place(&path)?;
                done(unlinkat(place.parent, place.name, AtFlags::REMOVEDIR))
            }
            Op::RemoveTree { path } => {
                let place = self.root.place(&path)?;
                let removed = remove::remove_tree(&place)?;
                Ok(Reply::Removed { count: removed.count, done: removed.done })
            }
            Op::Rename { from, to, replace } => {
                let (from, to) = (self.root.place(&from)?, self.root.place(&to)?);
                let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
                done(renameat_with(from.parent, from.name, to.parent, to.name, flags))
            }
            Op::Symlink { target, path, owner } => self.symlink(&target, &path, owner),
            Op::ReadLink { path } => {
                let link = self.root.hold(&path, Last::Itself)?;
                // For anything but a link readlinkat(2) says ENOENT with an empty path, which would mislead.
                if stat(&link)?.kind != FileKind::Symlink {
                    return Err(Errno::INVAL.into());
                }
                Ok(Reply::Path(readlinkat(link, c"", Vec::new())?.into_bytes().into()))
            }
            Op::RealPath { path } => self.real_path(&path),
            Op::Space { path } => self.space(&path),
        }
    }

    /// Reads into the service's own buffer: as much as asked, or up to the end of the file.
    pub fn read(&mut self, handle: u32, offset: u64, length: u32) -> Outcome<&[u8]> {
        let file = self.handles.file(handle)?;
        let wanted = (length as usize).min(MAX_DATA);
        let mut filled = 0;
        while filled < wanted {
            let at = offset.checked_add(filled as u64).ok_or(Errno::OVERFLOW)?;
            match retry_on_intr(|| pread(file, &mut self.buffer[filled..wanted], at)) {
                Ok(0) => break,
                Ok(count) => filled += count,
                // What was read is good; the next read meets the same error alone.
                Err(_) if filled > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(&self.buffer[..filled])
    }

    fn changer(&self) -> Changer<'_> {
        Changer { descriptors: &self.descriptors, id_limit: self.id_limit }
    }

    fn open(&mut self, path: &WirePath, flags: OpenFlags, mode: u32, owner: Owner) -> Outcome<Reply> {
        let writes = flags.write || flags.append;
        let mut how = match (flags.read, writes) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        if flags.append {
            how |= OFlags::APPEND;
        }
        for _ in 0..OPEN_ATTEMPTS {
            let (file, created) = match self.root.hold(path, Last::Follow) {
                Ok(_) if flags.create && flags.exclusive => return Err(Errno::EXIST.into()),
                Ok(held) => (self.changer().open_file(held, how)?, false),
                Err(failure) if failure.errno == Some(Errno::NOENT) && flags.create => {
                    match self.create(path, flags, how, mode, owner)? {
                        Some(file) => (file, true),
                        None => continue,
                    }
                }
                Err(failure) => return Err(failure),
            };
            if flags.truncate && writes && !created {
                ftruncate(&file, 0)?;
            }
            let stat = stat(&file)?;
            let handle = self.handles.add(Open::File(file))?;
            return Ok(Reply::Opened { handle, created, stat });
        }
        Err(Failure::of(FailureKind::Changed))
    }

    /// Makes a file where there was none a moment ago. `None` when something is there now.
    fn create(
        &self,
        path: &WirePath,
        flags: OpenFlags,
        how: OFlags,
        mode: u32,
        owner: Owner,
    ) -> Outcome<Option<OwnedFd>> {
        let how = how | OFlags::CREATE | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOCTTY;
        // Nobody else gets at it before it has its owner.
        let at_first = Mode::from_raw_mode(mode & 0o700);
        let (file, at_its_name) = match self.root.open(path, how, at_first) {
            Ok(file) => (file, true),
            Err(failure) if failure.errno == Some(Errno::EXIST) => {
                // A dangling link, which O_EXCL doesn't follow, or a file that has just been made by somebody else.
                if flags.exclusive {
                    return Err(failure);
                }
                match self.root.hold(path, Last::Follow) {
                    Ok(_) => return Ok(None),
                    Err(failure) if failure.errno == Some(Errno::NOENT) => {}
                    Err(failure) => return Err(failure),
                }
                // Through the link, as open(2) does it. What the container may put there in this moment is opened without
                // waiting and looked at afterwards.
                let file = self.root.open(path, how - OFlags::EXCL, at_first)?;
                if stat(&file)?.kind != FileKind::File {
                    return Err(Failure::of(FailureKind::SpecialFile));
                }
                (file, false)
            }
            Err(failure) => return Err(failure),
        };
        let given = self.give(&file, mode, owner);
        if at_its_name {
            self.or_take_back(given, path, AtFlags::empty())?;
        } else {
            given?;
        }
        Ok(Some(file))
    }

    fn give(&self, made: impl AsFd, mode: u32, owner: Owner) -> Outcome<()> {
        self.changer().own(&made, owner)?;
        self.changer().set_mode(&made, mode)
    }

    /// Removes what was just made where it could not be given the owner or mode that it should have.
    fn or_take_back(&self, given: Outcome<()>, path: &WirePath, flags: AtFlags) -> Outcome<()> {
        if given.is_err()
            && let Ok(place) = self.root.place(path)
        {
            let _ = unlinkat(&place.parent, &place.name, flags);
        }
        given
    }

    fn write(&mut self, handle: u32, offset: u64, mut data: &[u8]) -> Outcome<Reply> {
        let file = self.handles.file(handle)?;
        let mut offset = offset;
        while !data.is_empty() {
            // With O_APPEND Linux ignores the offset (pwrite(2), BUGS), which is what is wanted.
            let count = retry_on_intr(|| pwrite(file, data, offset))?;
            if count == 0 {
                return Err(Errno::IO.into());
            }
            data = &data[count..];
            offset = offset.checked_add(count as u64).ok_or(Errno::FBIG)?;
        }
        Ok(Reply::Done)
    }

    fn change_handle(&mut self, handle: u32, changes: &Changes) -> Outcome<Reply> {
        let changer = Changer { descriptors: &self.descriptors, id_limit: self.id_limit };
        match self.handles.get(handle)? {
            Open::File(file) => changer.change(file, changes)?,
            Open::Dir(dir) => changer.change(dir.fd()?, changes)?,
        }
        Ok(Reply::Done)
    }

    fn open_dir(&mut self, path: &WirePath) -> Outcome<Reply> {
        let dir = self.root.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK, Mode::empty())?;
        let stat = stat(&dir)?;
        let handle = self.handles.add(Open::Dir(Dir::new(dir)?))?;
        Ok(Reply::Opened { handle, created: false, stat })
    }

    fn read_dir(&mut self, handle: u32) -> Outcome<Reply> {
        let dir = self.handles.dir(handle)?;
        let mut entries = Vec::new();
        while entries.len() < MAX_BATCH {
            let Some(entry) = dir.read() else { return Ok(Reply::Entries { entries, end: true }) };
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match stat_entry(dir.fd()?, name) {
                Ok(stat) => entries.push(DirEntry { name: name.to_bytes().to_vec().into(), stat }),
                // Gone since it was read.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Reply::Entries { entries, end: false })
    }

    fn make_dir(&self, path: &WirePath, mode: u32, owner: Owner) -> Outcome<Reply> {
        let place = self.root.place(path)?;
        mkdirat(&place.parent, &place.name, Mode::from_raw_mode(mode & 0o700))?;
        // What has the name now is what its owner wanted there: ours, unless the container replaced it by another directory
        // of its own.
        let made = open_child(&place.parent, &place.name, OFlags::PATH | OFlags::DIRECTORY)?;
        self.or_take_back(self.give(&made, mode, owner), path, AtFlags::REMOVEDIR)?;
        Ok(Reply::Done)
    }

    fn symlink(&self, target: &WirePath, path: &WirePath, owner: Owner) -> Outcome<Reply> {
        let target = target.to_c_string().ok_or_else(|| Failure::of(FailureKind::BadPath))?;
        let place = self.root.place(path)?;
        symlinkat(target, &place.parent, &place.name)?;
        if owner != Owner::default() {
            // Held as it is; RESOLVE_NO_SYMLINKS would refuse a link even so.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let link = rustix::fs::openat(&place.parent, &place.name, flags, Mode::empty())?;
            self.or_take_back(self.changer().own(link, owner), path, AtFlags::empty())?;
        }
        Ok(Reply::Done)
    }

    fn real_path(&self, path: &WirePath) -> Outcome<Reply> {
        match self.root.hold(path, Last::Follow) {
            Ok(held) => Ok(Reply::Path(self.path_of(&held)?.into())),
            Err(failure) if failure.errno == Some(Errno::NOENT) => {
                let place = self.root.place(path)?;
                let mut found = self.path_of(&place.parent)?;
                if !found.ends_with(b"/") {
                    found.push(b'/');
                }
                found.extend_from_slice(place.name.to_bytes());
                Ok(Reply::Path(found.into()))
            }
            Err(failure) => Err(failure),
        }
    }

    /// The path from the root to what `held` holds, as the kernel knows it. The process's root is the container's.
    fn path_of(&self, held: &OwnedFd) -> Outcome<Vec<u8>> {
        let found = readlinkat(&self.descriptors, descriptor_name(held), Vec::new())?.into_bytes();
        // Ends so when it was removed meanwhile, but a name may end so too.
        if found.ends_with(DELETED) && stat(held)?.links == 0 {
            return Err(Errno::NOENT.into());
        }
        if found.starts_with(b"/") { Ok(found) } else { Err(Errno::NOENT.into()) }
    }

    fn space(&self, path: &WirePath) -> Outcome<Reply> {
        let found = fstatvfs(self.root.hold(path, Last::Follow)?)?;
        Ok(Reply::Space(Space {
            block_size: found.f_bsize,
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bfree.saturating_mul(found.f_frsize),
            available: found.f_bavail.saturating_mul(found.f_frsize),
            inodes: found.f_files,
            inodes_free: found.f_ffree,
            name_max: found.f_namemax,
            read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
        }))
    }
}

fn last(follow: bool) -> Last {
    if follow { Last::Follow } else { Last::Itself }
}

fn done(result: Result<(), Errno>) -> Outcome<Reply> {
    Ok(result.map(|()| Reply::Done)?)
}
