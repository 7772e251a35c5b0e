//! Taking a test host down from outside, whatever state it is in.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroups;
use crate::wait;

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
/// cgroups, ZFS pool, loop devices and files.
pub fn sweep(folder: &Path, name: &str) -> Result<()> {
    cgroups::destroy(&cgroups::hierarchies()?, name)?;
    unmount(folder)?;
    destroy_zpool(name)?;
    for device in loop_devices(folder)? {
        Command::new("losetup").args(["--detach", &device]).status().context("running losetup")?;
    }
    let status = Command::new("rm").args(["-rf", "--one-file-system"]).arg(folder).status().context("running rm")?;
    if !status.success() {
        bail!("{} could not be removed", folder.display());
    }
    Ok(())
}

/// Destroys the ZFS pool that has the host's name, if there is one.
fn destroy_zpool(name: &str) -> Result<()> {
    let zpool = |arguments: &[&str]| Command::new("zpool").args(arguments).output().context("running zpool");
    if !Path::new("/sys/module/zfs").exists() || !zpool(&["list", name])?.status.success() {
        return Ok(());
    }
    // Mounts in namespaces that have just ended go in the background.
    let gone = || zpool(&["destroy", "-f", name]).ok().filter(|destroyed| destroyed.status.success());
    wait::poll(Duration::from_secs(30), gone).with_context(|| format!("the ZFS pool {name} cannot be destroyed"))?;
    Ok(())
}

/// Takes down what is mounted below `folder` where the sweeper stands: the disk of a host that has one.
fn unmount(folder: &Path) -> Result<()> {
    for point in mounts(std::process::id()).iter().rev().filter(|point| Path::new(point).starts_with(folder)) {
        nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {point}"))?;
    }
    Ok(())
}

/// Mount points in a process' mount namespace, in the order in which they were mounted.
pub fn mounts(pid: u32) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}
