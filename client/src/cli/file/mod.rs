//! `duet file`: files in instances, through the daemon's files API.

mod pull;
mod push;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::stream;

use super::context::{Context, found};
use super::editor::edit_file;
use super::output::print_line;
use super::parse::{instance_path, mode};
use crate::api::FileKind;
use crate::http::{Body, Error, FileContent, FileOwner, empty_body, stream_body};

/// Files in instances
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum File {
    Create(Create),
    #[command(visible_alias = "rm")]
    Delete(Delete),
    Edit(Edit),
    #[command(visible_alias = "ls")]
    List(List),
    Mkdir(Mkdir),
    Pull(pull::Pull),
    Push(push::Push),
}

impl File {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Create(command) => command.run(context).await,
            Self::Delete(command) => command.run(context).await,
            Self::Edit(command) => command.run(context).await,
            Self::List(command) => command.run(context).await,
            Self::Mkdir(command) => command.run(context).await,
            Self::Pull(command) => command.run(context).await,
            Self::Push(command) => command.run(context).await,
        }
    }
}

/// Owner and mode of what is made in the instance.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct OwnerArgs {
    /// The owner's user id
    #[arg(long)]
    uid: Option<u32>,
    /// The owner's group id
    #[arg(long)]
    gid: Option<u32>,
    /// Permission bits, in octal
    #[arg(long, value_parser = mode)]
    mode: Option<u32>,
}

impl OwnerArgs {
    /// What was asked for, and for the rest what `fallback` has.
    fn or(self, fallback: FileOwner) -> FileOwner {
        FileOwner { uid: self.uid.or(fallback.uid), gid: self.gid.or(fallback.gid), mode: self.mode.or(fallback.mode) }
    }
}

/// A path inside an instance.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub(super) instance: String,
    pub(super) path: String,
}

impl Remote {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (instance, path) = instance_path(text)?;
        Ok(Self { instance, path })
    }

    /// A path below this one.
    fn join(&self, name: &str) -> Self {
        Self { instance: self.instance.clone(), path: format!("{}/{name}", self.path.trim_end_matches('/')) }
    }

    /// The last component, unless this is the root.
    fn name(&self) -> Option<&str> {
        self.path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// Every directory above this path, the highest first, without the root.
    fn parents(&self) -> Vec<Self> {
        let path = self.path.trim_end_matches('/');
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|&at| at > 0);
        ends.filter(|&at| !path[..at].ends_with('/'))
            .map(|at| Self { instance: self.instance.clone(), path: path[..at].to_owned() })
            .collect()
    }

    async fn stat(&self, context: &Context) -> Result<Option<(FileKind, FileOwner, Option<u64>)>, Error> {
        found(context.client.file_stat(&self.instance, &self.path).await)
    }

    async fn put(&self, context: &Context, kind: FileKind, owner: FileOwner, body: Body) -> Result<(), Error> {
        context.client.file_put(&self.instance, &self.path, kind, owner, false, body).await
    }

    /// Makes the directory unless it is there.
    async fn ensure_directory(&self, context: &Context, owner: FileOwner) -> anyhow::Result<()> {
        match self.stat(context).await? {
            Some((FileKind::Directory, _, _)) => Ok(()),
            // A link may lead to a directory; the daemon follows it within the instance or says why not.
            Some((FileKind::Symlink, _, _)) => Ok(()),
            Some(_) => bail!("{self} is in the way: it is not a directory"),
            None => Ok(self.put(context, FileKind::Directory, owner, empty_body()).await?),
        }
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.instance, self.path)
    }
}

/// Text as a request's body.
fn text_body(text: impl Into<Bytes>) -> Body {
    stream_body(stream::iter([Ok(text.into())]))
}

/// Makes the directories above a path.
async fn make_parents(context: &Context, remote: &Remote, owner: FileOwner) -> anyhow::Result<()> {
    for parent in remote.parents() {
        parent.ensure_directory(context, owner).await?;
    }
    Ok(())
}

/// Create an empty file, a directory or a symlink in an instance
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// INSTANCE/PATH
    path: String,
    /// What a symlink points at
    target: Option<String>,
    /// file, directory or symlink
    #[arg(long = "type", default_value = "file")]
    kind: FileKind,
    /// Make the directories above it as well
    #[arg(short = 'p', long)]
    create_dirs: bool,
    /// Replace what is there
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    owner: OwnerArgs,
}

impl Create {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let remote = Remote::parse(&self.path)?;
        let kind = if self.path.ends_with('/') { FileKind::Directory } else { self.kind };
        let body = match (kind, self.target) {
            (FileKind::Symlink, Some(target)) => text_body(target),
            (FileKind::Symlink, None) => bail!("a symlink needs a target: duet file create --type symlink PATH TARGET"),
            (_, Some(_)) => bail!("only a symlink has a target"),
            (_, None) => empty_body(),
        };
        if self.create_dirs {
            make_parents(context, &remote, FileOwner::default()).await?;
        }
        if remote.stat(context).await?.is_some() {
            if !self.force {
                bail!("{remote} exists already (--force replaces it)");
            }
            context.client.file_delete(&remote.instance, &remote.path, false).await?;
        }
        Ok(remote.put(context, kind, self.owner.or(FileOwner::default()), body).await?)
    }
}

/// Delete files in instances
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// INSTANCE/PATH
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// Directories with all that is in them, and no complaint about what is not there
    #[arg(short, long, visible_short_alias = 'r', visible_alias = "recursive")]
    force: bool,
}

impl Delete {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        for path in &self.paths {
            let remote = Remote::parse(path)?;
            let result = context.client.file_delete(&remote.instance, &remote.path, self.force).await;
            match result {
                Err(error) if self.force && error.is_not_found() => {}
                result => result.with_context(|| format!("cannot delete {remote}"))?,
            }
        }
        Ok(())
    }
}

/// Edit a file in an instance with your editor, or replace it by what is piped in
#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// INSTANCE/PATH
    path: String,
}

impl Edit {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let remote = Remote::parse(&self.path)?;
        let directory = tempfile::tempdir()?;
        let local = directory.path().join(remote.name().context("name a file, not the root directory")?);
        let owner = match found(context.client.file_get(&remote.instance, &remote.path).await)? {
            Some(file) => {
                let FileContent::File(body) = file.content else { bail!("{remote} is not a regular file") };
                pull::save(body, &local, false).await?;
                file.owner
            }
            None => {
                std::fs::write(&local, "")?;
                FileOwner::default()
            }
        };
        if let Some(text) = super::launch::piped_input()? {
            return Ok(remote.put(context, FileKind::File, owner, text_body(text)).await?);
        }
        let before = std::fs::read(&local)?;
        edit_file(&local)?;
        let after = std::fs::read(&local).context("cannot read the edited file again")?;
        if before == after {
            context.remark("Nothing was changed");
            return Ok(());
        }
        Ok(remote.put(context, FileKind::File, owner, text_body(after)).await?)
    }
}

/// List a directory in an instance
#[derive(Debug, Args)]
pub(crate) struct List {
    /// INSTANCE/PATH
    path: String,
    /// With type, mode, owner and size
    #[arg(short, long)]
    long: bool,
}

impl List {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let remote = Remote::parse(&self.path)?;
        let file = context.client.file_get(&remote.instance, &remote.path).await?;
        let entries = match file.content {
            FileContent::Directory(mut names) => {
                names.sort();
                names.into_iter().map(|name| (remote.join(&name), name)).collect()
            }
            _ => vec![(remote.clone(), remote.path.clone())],
        };
        for (entry, name) in entries {
            if !self.long {
                print_line(&name)?;
                continue;
            }
            let Some((kind, owner, size)) = entry.stat(context).await? else { continue };
            let letter = match kind {
                FileKind::File => '-',
                FileKind::Directory => 'd',
                FileKind::Symlink => 'l',
            };
            print_line(&format!(
                "{letter} {:04o} {:>6} {:>6} {:>10} {name}",
                owner.mode.unwrap_or_default(),
                owner.uid.unwrap_or_default(),
                owner.gid.unwrap_or_default(),
                size.filter(|_| kind == FileKind::File).unwrap_or_default(),
            ))?;
        }
        Ok(())
    }
}

/// Make directories in instances
#[derive(Debug, Args)]
pub(crate) struct Mkdir {
    /// INSTANCE/PATH
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// Make the directories above as well, and let existing ones be
    #[arg(short = 'p', long)]
    create_dirs: bool,
    #[command(flatten)]
    owner: OwnerArgs,
}

impl Mkdir {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let owner = self.owner.or(FileOwner { uid: None, gid: None, mode: Some(0o755) });
        for path in &self.paths {
            let remote = Remote::parse(path)?;
            if self.create_dirs {
                make_parents(context, &remote, owner).await?;
                remote.ensure_directory(context, owner).await?;
            } else {
                if remote.stat(context).await?.is_some() {
                    bail!("{remote} exists already");
                }
                remote.put(context, FileKind::Directory, owner, empty_body()).await?;
            }
        }
        Ok(())
    }
}

/// The last component of a local path.
fn local_base(path: &Path) -> anyhow::Result<String> {
    let name = match path.file_name() {
        Some(name) => name.to_owned(),
        // "." and ".." are named by where they lead.
        None => {
            let real: PathBuf = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
            real.file_name().map(ToOwned::to_owned).unwrap_or_default()
        }
    };
    name.into_string().map_err(|name| anyhow::anyhow!("{} is not valid text (UTF-8)", Path::new(&name).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_paths() {
        let remote = Remote::parse("c1/a/b/c").unwrap();
        assert_eq!(remote.name(), Some("c"));
        let parents: Vec<String> = remote.parents().into_iter().map(|parent| parent.path).collect();
        assert_eq!(parents, ["/a", "/a/b"]);
        assert_eq!(remote.join("d").path, "/a/b/c/d");
        let root = Remote::parse("c1/").unwrap();
        assert_eq!(root.name(), None);
        assert!(root.parents().is_empty());
        assert_eq!(root.join("x").path, "/x");
        assert_eq!(Remote::parse("c1/a//b/").unwrap().name(), Some("b"));
    }

    #[test]
    fn flags_win_over_the_source() {
        let source = FileOwner { uid: Some(5), gid: Some(6), mode: Some(0o640) };
        let args = OwnerArgs { uid: Some(1), gid: None, mode: None };
        assert_eq!(args.or(source), FileOwner { uid: Some(1), gid: Some(6), mode: Some(0o640) });
    }
}
