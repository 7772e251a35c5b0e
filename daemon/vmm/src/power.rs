//! How a machine ends: by itself over the ACPI sleep and reset registers and the panic port, or by somebody's will.
//!
//! The machine is "hardware-reduced ACPI" (ACPI 6.5, 4.1): no PM timer, no SCI, no legacy interrupt controller or timer
//! to be probed. The power button is an interrupt that the DSDT's event device turns into a notification.

use std::io;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::layout;

/// `SLP_TYP` of the state S5, "soft off", as the DSDT gives it.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// What is written to the reset register.
pub const RESET_VALUE: u8 = 1;
/// `SLP_EN` of the sleep control register (ACPI 6.5, 4.8.3.7). `SLP_TYP` begins at bit 2.
const SLEEP_ENABLE: u8 = 1 << 5;
/// The panic port's bit for "the guest panicked".
const PANICKED: u8 = 1;

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked and said so.
    Panic,
    /// A CPU shut down (a triple fault): the last way of a kernel to reset, or a crash.
    TripleFault,
    /// A CPU could not go on: what it did cannot be emulated.
    Stuck,
    /// It was ended from outside.
    Stopped,
}

impl Ending {
    /// The status with which `duet-vmm` exits. 1 and 2 are failures of its own.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reset => 10,
            Self::Panic => 11,
            Self::TripleFault => 12,
            Self::Stuck => 13,
            Self::Stopped => 14,
        }
    }
}

/// The power registers and button of a machine.
#[derive(Debug)]
pub struct Power {
    ending: OnceLock<Ending>,
    /// Readable once there is an ending.
    pub ended: EventFd,
    /// Raises the power button's interrupt.
    pub button: EventFd,
}

impl Power {
    /// A machine that runs.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ending: OnceLock::new(), ended: EventFd::new(EFD_NONBLOCK)?, button: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Ends the machine. The first ending counts.
    pub fn end(&self, ending: Ending) {
        if self.ending.set(ending).is_ok() {
            // A counter at its limit would be refused; it was never written to.
            let _ = self.ended.write(1);
        }
    }

    /// How the machine ended.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    /// A byte from the guest. Says whether the port is one of these.
    pub fn write(&self, port: u16, value: u8) -> bool {
        match port {
            layout::SLEEP_CONTROL_PORT => {
                if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_OFF {
                    self.end(Ending::PowerOff);
                }
            }
            layout::RESET_PORT => {
                if value == RESET_VALUE {
                    self.end(Ending::Reset);
                }
            }
            layout::PANIC_PORT => {
                if value & PANICKED != 0 {
                    self.end(Ending::Panic);
                }
            }
            layout::SLEEP_STATUS_PORT => {}
            _ => return false,
        }
        true
    }

    /// A byte for the guest, if the port is one of these.
    #[must_use]
    pub fn read(&self, port: u16) -> Option<u8> {
        match port {
            layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT | layout::RESET_PORT => Some(0),
            layout::PANIC_PORT => Some(PANICKED),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_values_end_a_machine_and_the_first_counts() {
        let power = Power::new().unwrap();
        for value in [0, RESET_VALUE << 1, 0xff] {
            assert!(power.write(layout::RESET_PORT, value));
        }
        for value in [SLEEP_TYPE_OFF << 2, SLEEP_ENABLE, SLEEP_ENABLE | 1 << 2] {
            assert!(power.write(layout::SLEEP_CONTROL_PORT, value));
        }
        assert_eq!(power.ending(), None);
        assert!(power.write(layout::SLEEP_CONTROL_PORT, SLEEP_ENABLE | SLEEP_TYPE_OFF << 2));
        assert!(power.write(layout::RESET_PORT, RESET_VALUE));
        assert_eq!(power.ending(), Some(Ending::PowerOff));
        assert_eq!(power.ended.read().unwrap(), 1);
    }
}
