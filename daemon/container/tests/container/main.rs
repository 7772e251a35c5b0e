//! The runtime on the real kernel: containers of a busybox root, started by the shipped monitor. Needs root.

mod console;
mod exec;
mod hostile;
mod hotplug;
mod start;
mod support;
