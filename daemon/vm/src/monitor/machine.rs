//! The running machine, whichever program it is.

use std::os::fd::{AsFd, BorrowedFd};

use duet_control::protocol::{ExecStatus, ExitReason};
use duet_control::step::StepError;
use duet_vmm::power::Ending;

use super::process::Child;
use super::qemu::Qmp;
use super::vmm::{self, Control};

/// How a machine has ended whose guest's kernel panicked: by the code that duet-vmm has for it.
pub(super) const PANICKED: ExitReason = ExitReason::Exited { code: Ending::Panic.status() as i32 };

/// The connection to the machine's program.
#[derive(Debug)]
pub(super) enum Line {
    Qemu(Qmp),
    Vmm(Control),
}

/// The machine's process, and the line to it.
#[derive(Debug)]
pub(super) struct Machine {
    pub child: Child,
    pub line: Line,
}

impl Line {
    /// What is to be watched, until it has ended.
    pub fn interest(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Qemu(qmp) => qmp.interest(),
            Self::Vmm(control) => control.interest(),
        }
    }

    /// Hears what has been said.
    pub fn read(&mut self) {
        match self {
            Self::Qemu(qmp) => qmp.read(),
            Self::Vmm(control) => control.read(),
        }
    }

    /// Whether the machine has said that it runs.
    pub fn answered(&self) -> bool {
        match self {
            Self::Qemu(qmp) => qmp.answered(),
            Self::Vmm(control) => control.answered(),
        }
    }

    /// Presses the power button.
    pub fn power_button(&mut self) -> Result<(), StepError> {
        match self {
            Self::Qemu(qmp) => qmp.power_button(),
            Self::Vmm(control) => control.power_button(),
        }
    }

    /// What the end of the machine's process means, once everything was read.
    pub fn reason(&self, status: ExecStatus) -> ExitReason {
        match (status, self) {
            (ExecStatus::Signal(signal), _) => ExitReason::Signal { signal },
            (ExecStatus::Code(code), Self::Vmm(_)) => vmm::reason(code),
            (ExecStatus::Code(code), Self::Qemu(qmp)) => qmp.ending().unwrap_or(ExitReason::Exited { code }),
        }
    }
}

impl AsFd for Machine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }
}
