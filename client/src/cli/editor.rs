//! Editing an object as YAML, in the user's editor or from standard input.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::output::{from_yaml, to_yaml};

/// Lets the user change an object. From a terminal their editor opens, again after a mistake if they like; otherwise
/// the new text is read from standard input. `help` is put in front as a comment.
pub(crate) fn edit_object<T>(help: &str, current: &T) -> anyhow::Result<T>
where
    T: Serialize + DeserializeOwned + Default,
{
    if !std::io::stdin().is_terminal() {
        let text = std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?;
        return from_yaml(&text);
    }
    let comment: String = help.lines().map(|line| format!("### {line}\n")).collect();
    let mut text = comment + &to_yaml(current)?;
    loop {
        text = edit_text(&text, ".yaml")?;
        match from_yaml(&text) {
            Ok(value) => return Ok(value),
            Err(error) => {
                eprintln!("Error: {error:#}");
                eprint!("Press enter to edit again or ctrl+c to give up ");
                let mut line = String::new();
                if std::io::stdin().read_line(&mut line)? == 0 {
                    bail!("nothing was changed");
                }
            }
        }
    }
}

/// Opens text in the user's editor and returns what they left.
pub(crate) fn edit_text(text: &str, suffix: &str) -> anyhow::Result<String> {
    let mut file = tempfile::Builder::new().prefix("duet-").suffix(suffix).tempfile()?;
    file.write_all(text.as_bytes())?;
    file.flush()?;
    edit_file(file.path())?;
    std::fs::read_to_string(file.path()).context("cannot read the edited file again")
}

/// Opens a file in the user's editor and waits until it is closed.
pub(crate) fn edit_file(path: &Path) -> anyhow::Result<()> {
    let chosen = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    let editor = match chosen {
        Some(editor) => editor,
        None => ["editor", "vi", "nano"]
            .iter()
            .find(|name| in_path(name))
            .context("there is no editor; set EDITOR to one")?
            .to_string(),
    };
    // Through the shell, because EDITOR may hold arguments ("code --wait").
    let status = Command::new("sh")
        .args(["-c", &format!("exec {editor} \"$1\""), "sh"])
        .arg(path)
        .status()
        .with_context(|| format!("cannot run the editor {editor:?}"))?;
    if !status.success() {
        bail!("the editor {editor:?} ended with {status}; nothing was changed");
    }
    Ok(())
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
