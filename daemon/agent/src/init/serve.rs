//! Serving a root of which nothing is started: the host reaches the files of a machine that is switched off.

use std::convert::Infallible;

use rustix::process::{Pid, WaitOptions, wait};

use super::{Failure, saying};

/// Stays as the parent of the agent and of whatever it leaves behind, until the agent ends the machine.
pub(super) fn stay(agent: Pid) -> Result<Infallible, Failure> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => return Err(format!("the agent has ended: {status:?}")),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(saying("the agent cannot be waited for")(error)),
        }
    }
}
