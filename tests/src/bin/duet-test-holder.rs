//! Keeps the namespaces of one test host; see `duet_tests::machine`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use duet_tests::machine::{hold, watch};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("{what} is missing"));
    let mode = next("the mode")?;
    let name = next("the host's name")?;
    let folder = PathBuf::from(next("the host's folder")?);
    match mode.as_str() {
        "watch" => watch(&folder, &name),
        "hold" => hold(&folder, &name),
        other => bail!("no such mode: {other}"),
    }
}
