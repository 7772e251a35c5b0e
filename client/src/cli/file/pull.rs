//! `duet file pull`.
//!
//! What is inside an instance is not to be trusted: a name may try to leave the target directory, and the instance may
//! change what stands at a path while it is being read. So names are checked before they are joined to a local path,
//! and nothing is ever written through a link that the pull itself has made.

use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::StreamExt as _;
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt as _;

use super::Remote;
use crate::api::FileKind;
use crate::cli::context::Context;
use crate::http::{FileContent, RemoteFile};

/// Copy files out of an instance
///
/// Modes are kept; the files are yours. "-" as the target is standard output. Directories always go below the target.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// INSTANCE/PATH
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// A file, or a directory if it exists as one or ends in "/"
    target: String,
    /// Directories with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Make the directories above the target as well
    #[arg(short = 'p', long)]
    create_dirs: bool,
}

impl Pull {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let target = Path::new(&self.target);
        if self.create_dirs {
            let directory = if self.target.ends_with('/') { Some(target) } else { target.parent() };
            if let Some(directory) = directory.filter(|directory| !directory.as_os_str().is_empty()) {
                std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
            }
        }
        let into_directory = target.is_dir();
        if !into_directory && self.target != "-" {
            if self.target.ends_with('/') {
                bail!("there is no directory {} (-p makes it)", target.display());
            }
            if self.sources.len() > 1 {
                bail!("several files need a directory as their target, and {} is none", target.display());
            }
        }
        for source in &self.sources {
            let remote = Remote::parse(source)?;
            if self.target == "-" {
                to_stdout(context, &remote).await?;
                continue;
            }
            let name = remote.name().unwrap_or(&remote.instance).to_owned();
            if into_directory {
                self.pull(context, &remote, &target.join(name), false).await?;
            } else if self.recursive && self.is_directory(context, &remote).await? {
                // A directory always goes below the target, as Incus has it.
                make_directory(target, false)?;
                self.pull(context, &remote, &target.join(name), false).await?;
            } else {
                self.pull(context, &remote, target, true).await?;
            }
        }
        Ok(())
    }

    async fn is_directory(&self, context: &Context, remote: &Remote) -> anyhow::Result<bool> {
        Ok(matches!(remote.stat(context).await?, Some((FileKind::Directory, _, _))))
    }

    /// Pulls what is at `remote` to `local`. Only with `named`, when `local` is what the user wrote, may a link stand
    /// there: any other may have been made by this very pull.
    async fn pull(&self, context: &Context, remote: &Remote, local: &Path, named: bool) -> anyhow::Result<()> {
        let mut pending: Vec<(Remote, PathBuf)> = vec![(remote.clone(), local.to_owned())];
        let mut follow = named;
        while let Some((from, to)) = pending.pop() {
            let file = open(context, &from).await?;
            let mode = file.owner.mode;
            match file.content {
                FileContent::File(body) => {
                    save(body, &to, !follow).await?;
                    set_mode(&to, mode)?;
                }
                FileContent::Symlink(link) => make_link(&link, &to)?,
                FileContent::Directory(names) => {
                    if !self.recursive {
                        bail!("{from} is a directory (--recursive pulls it)");
                    }
                    make_directory(&to, !follow)?;
                    for name in names {
                        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
                            bail!("{from} has an entry with the impossible name {name:?}; nothing of it was pulled");
                        }
                        pending.push((from.join(&name), to.join(&name)));
                    }
                    set_mode(&to, mode.map(|mode| mode | 0o700))?;
                }
            }
            follow = false;
        }
        Ok(())
    }
}

async fn open(context: &Context, remote: &Remote) -> anyhow::Result<RemoteFile> {
    let result = context.client.file_get(&remote.instance, &remote.path).await;
    result.with_context(|| format!("cannot pull {remote}"))
}

async fn to_stdout(context: &Context, remote: &Remote) -> anyhow::Result<()> {
    let body = match open(context, remote).await?.content {
        FileContent::File(body) => body,
        FileContent::Symlink(link) => return crate::cli::output::print(&link),
        FileContent::Directory(_) => bail!("{remote} is a directory; it cannot go to standard output"),
    };
    let mut data = std::pin::pin!(RemoteFile::stream(body));
    let mut output = tokio::io::stdout();
    while let Some(chunk) = data.next().await {
        output.write_all(&chunk.context("the file broke off")?).await?;
    }
    output.flush().await?;
    Ok(())
}

/// Writes a file's bytes; with `fresh`, never through a link at `path`.
pub(super) async fn save(body: Incoming, path: &Path, fresh: bool) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    if fresh {
        options.custom_flags(libc::O_NOFOLLOW);
    }
    let mut file = tokio::fs::File::from_std(options.open(path).with_context(failed)?);
    let mut data = std::pin::pin!(RemoteFile::stream(body));
    while let Some(chunk) = data.next().await {
        file.write_all(&chunk.context("the file broke off")?).await.with_context(failed)?;
    }
    file.flush().await.with_context(failed)
}

fn make_directory(path: &Path, fresh: bool) -> anyhow::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let metadata = if fresh { std::fs::symlink_metadata(path) } else { std::fs::metadata(path) };
            if metadata.is_ok_and(|metadata| metadata.is_dir()) {
                return Ok(());
            }
            bail!("{} is in the way: it is not a directory", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
    }
}

fn make_link(target: &str, path: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot create {}", path.display());
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        std::fs::remove_file(path).with_context(failed)?;
    }
    std::os::unix::fs::symlink(target, path).with_context(failed)
}

fn set_mode(path: &Path, mode: Option<u32>) -> anyhow::Result<()> {
    // Set-id bits of a file that somebody else made have no place on the host.
    let Some(mode) = mode.map(|mode| mode & 0o777) else { return Ok(()) };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}
