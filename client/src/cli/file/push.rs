//! `duet file push`.

use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio_util::io::ReaderStream;

use super::{OwnerArgs, Remote, local_base, make_parents, text_body};
use crate::api::FileKind;
use crate::cli::context::Context;
use crate::http::{FileOwner, stream_body};

/// How much is read from a file at a time.
const CHUNK: usize = 128 * 1024;

/// Copy files into an instance
///
/// Modes and owners are those of the sources unless given. "-" as the source is standard input. Directories always go
/// below the target.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The sources
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// INSTANCE/PATH; a directory if it exists as one or ends in "/"
    target: String,
    /// Directories with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Make the directories above the target as well
    #[arg(short = 'p', long)]
    create_dirs: bool,
    #[command(flatten)]
    owner: OwnerArgs,
}

impl Push {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let target = Remote::parse(&self.target)?;
        if self.recursive && (self.owner.uid.is_some() || self.owner.gid.is_some() || self.owner.mode.is_some()) {
            bail!("--uid, --gid and --mode do not go together with --recursive: the sources' own are kept");
        }
        let many = self.sources.len() > 1;
        let existing = target.stat(context).await?.map(|(kind, _, _)| kind);
        let into_directory = many || self.target.ends_with('/') || matches!(existing, Some(FileKind::Directory));
        let sources_are_directories = self.recursive && self.sources.iter().any(|source| Path::new(source).is_dir());
        if self.create_dirs {
            // Whose directories these are, no source says.
            make_parents(context, &target, FileOwner::default()).await?;
            if into_directory || sources_are_directories {
                target.ensure_directory(context, FileOwner::default()).await?;
            }
        }
        for source in &self.sources {
            if source == "-" {
                if into_directory {
                    bail!("standard input needs a file's name as its target");
                }
                self.push_stdin(context, &target).await?;
                continue;
            }
            let path = Path::new(source);
            // A directory always goes below the target, as Incus has it.
            let below = into_directory || (self.recursive && path.is_dir());
            let to = if below { target.join(&local_base(path)?) } else { target.clone() };
            self.push(context, path, &to).await?;
        }
        Ok(())
    }

    async fn push_stdin(&self, context: &Context, target: &Remote) -> anyhow::Result<()> {
        // Read before anything is sent, so that a failing producer leaves no half file behind.
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
        let owner = self.owner.or(FileOwner::default());
        Ok(target.put(context, FileKind::File, owner, text_body(bytes)).await?)
    }

    /// Pushes a file, a link, or with --recursive a directory.
    async fn push(&self, context: &Context, source: &Path, target: &Remote) -> anyhow::Result<()> {
        let metadata = std::fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
        if !metadata.is_dir() {
            return push_one(context, source, target, self.owner, true).await;
        }
        if !self.recursive {
            bail!("{} is a directory (--recursive pushes it)", source.display());
        }
        let mut pending: Vec<(PathBuf, Remote)> = vec![(source.to_owned(), target.clone())];
        while let Some((from, to)) = pending.pop() {
            push_one(context, &from, &to, self.owner, from == source).await?;
            if !std::fs::symlink_metadata(&from)?.is_dir() && from != source {
                continue;
            }
            let entries = std::fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))?;
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().into_string();
                let name = name.map_err(|_| anyhow::anyhow!("a name in {} is not valid text", from.display()))?;
                pending.push((entry.path(), to.join(&name)));
            }
        }
        Ok(())
    }
}

/// Pushes one thing. A link that the user named is followed; one found in a directory is pushed as a link.
async fn push_one(
    context: &Context,
    source: &Path,
    target: &Remote,
    owner: OwnerArgs,
    follow: bool,
) -> anyhow::Result<()> {
    let failed = || format!("cannot read {}", source.display());
    let metadata = if follow { std::fs::metadata(source) } else { std::fs::symlink_metadata(source) };
    let metadata = metadata.with_context(failed)?;
    let kind = metadata.file_type();
    let owner = owner.or(FileOwner {
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        mode: Some(metadata.mode() & 0o7777),
    });
    let sent = if kind.is_dir() {
        target.ensure_directory(context, owner).await
    } else if kind.is_symlink() {
        let link = std::fs::read_link(source).with_context(failed)?;
        let link = link.into_os_string().into_string();
        let link = link.map_err(|_| anyhow::anyhow!("the target of {} is not valid text", source.display()))?;
        target.put(context, FileKind::Symlink, owner, text_body(link)).await.map_err(Into::into)
    } else if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
        if follow && kind.is_fifo() {
            let bytes = std::fs::read(source).with_context(failed)?;
            target.put(context, FileKind::File, owner, text_body(bytes)).await.map_err(Into::into)
        } else {
            context.remark(&format!("{} is neither a file, a directory nor a link; skipped", source.display()));
            Ok(())
        }
    } else {
        let file = tokio::fs::File::open(source).await.with_context(failed)?;
        let body = stream_body(ReaderStream::with_capacity(file, CHUNK));
        target.put(context, FileKind::File, owner, body).await.map_err(Into::into)
    };
    sent.with_context(|| format!("cannot push {} to {target}", source.display()))
}
