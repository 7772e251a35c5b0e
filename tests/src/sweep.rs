//! Taking a test host down from outside, whatever state it is in.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cgroups;

/// Loop devices whose backing file lies below `folder`.
pub fn loop_devices(folder: &Path) -> Result<Vec<String>> {
    let output = Command::new("losetup")
        .args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"])
        .output()
        .context("running losetup")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let (device, file) = line.trim().split_once(char::is_whitespace)?;
            Path::new(file.trim()).starts_with(folder).then(|| device.to_owned())
        })
        .collect())
}

/// Kills every process of the host, which ends its namespaces and with them its mounts and links; then removes its
/// cgroups, loop devices and files.
pub fn sweep(folder: &Path, name: &str) -> Result<()> {
    cgroups::destroy(&cgroups::hierarchies()?, name)?;
    for device in loop_devices(folder)? {
        Command::new("losetup").args(["--detach", &device]).status().context("running losetup")?;
    }
    let status = Command::new("rm").args(["-rf", "--one-file-system"]).arg(folder).status().context("running rm")?;
    if !status.success() {
        bail!("{} could not be removed", folder.display());
    }
    Ok(())
}
