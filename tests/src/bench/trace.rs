//! Tracing a process and its children with the kernel's own tracer (Documentation/trace/events.rst): some hundred
//! nanoseconds per system call, where a debugger's stops would cost more than the calls.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What happened at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A system call was entered; its number.
    Enter(i64),
    /// It returned; its number and result.
    Exit(i64, i64),
    /// A process or thread was made.
    Fork(i32),
    /// A program was executed; its path.
    Exec(String),
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The thread it happened in.
    pub thread: i32,
    /// Since boot.
    pub time: Duration,
    /// What it was.
    pub kind: Kind,
}

/// A trace instance of our own: nothing else that traces on this machine is disturbed.
#[derive(Debug)]
pub struct Tracer {
    mounted: Option<PathBuf>,
    folder: PathBuf,
}

impl Tracer {
    /// Starts to record the system calls, forks and executions of the threads of `pid` and of all they make.
    ///
    /// # Errors
    /// Where the kernel has no tracefs or no such events.
    pub fn start(pid: i32) -> Result<Self> {
        let (root, mounted) = tracefs()?;
        let folder = root.join("instances").join(format!("duet-{}", std::process::id()));
        fs::create_dir(&folder).context("making a trace instance")?;
        let tracer = Self { mounted, folder };
        tracer.write("trace_clock", "mono")?;
        tracer.write("buffer_size_kb", "16384")?;
        tracer.write("options/event-fork", "1")?;
        let threads: Vec<String> = fs::read_dir(format!("/proc/{pid}/task"))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        tracer.write("set_event_pid", &threads.join(" "))?;
        for event in ["raw_syscalls", "sched/sched_process_fork", "sched/sched_process_exec"] {
            tracer.write(&format!("events/{event}/enable"), "1")?;
        }
        tracer.write("tracing_on", "1")?;
        Ok(tracer)
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
    }

    /// Ends the recording and gives its events, the earliest first.
    ///
    /// # Errors
    /// Where the trace cannot be read.
    pub fn stop(self) -> Result<Vec<Event>> {
        self.write("tracing_on", "0")?;
        let text = fs::read_to_string(self.folder.join("trace")).context("reading the trace")?;
        let mut events: Vec<Event> = text.lines().filter_map(parse).collect();
        events.sort_by_key(|event| event.time);
        if events.is_empty() {
            bail!("the trace is empty");
        }
        Ok(events)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Events keep an instance busy until they are off.
        let _ = self.write("events/enable", "0");
        let _ = fs::remove_dir(&self.folder);
        if let Some(mounted) = &self.mounted {
            let _ = Command::new("umount").arg(mounted).status();
            let _ = fs::remove_dir(mounted);
        }
    }
}

/// Where tracefs is mounted, or where it was mounted now.
fn tracefs() -> Result<(PathBuf, Option<PathBuf>)> {
    let usual = PathBuf::from("/sys/kernel/tracing");
    if usual.join("instances").is_dir() {
        return Ok((usual, None));
    }
    let folder = tempfile::Builder::new().prefix("duet-trace-").tempdir()?.keep();
    let mounted = Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(&folder).status()?;
    if !mounted.success() {
        let _ = fs::remove_dir(&folder);
        bail!("tracefs cannot be mounted: this kernel has no event tracing");
    }
    Ok((folder.clone(), Some(folder)))
}

/// Reads a line such as
/// `duetd-4711  [001] .....  12.345678: sys_enter: NR 257 (ffffff9c, 7ffd, 0, 0, 0, 0)`.
fn parse(line: &str) -> Option<Event> {
    let (task, rest) = line.split_once(" [")?;
    let thread = task.trim().rsplit_once('-')?.1.parse().ok()?;
    let (_, rest) = rest.split_once("] ")?;

    let rest = rest.trim_start().split_once(char::is_whitespace)?.1.trim_start();
    let (time, rest) = rest.split_once(": ")?;
    let (name, fields) = rest.split_once(": ")?;
    let number = |prefix: &str| -> Option<i64> { fields.strip_prefix(prefix)?.split([' ', ')']).next()?.parse().ok() };
    let field = |name: &str| fields.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let kind = match name.trim() {
        "sys_enter" => Kind::Enter(number("NR ")?),
        "sys_exit" => Kind::Exit(number("NR ")?, fields.rsplit("= ").next()?.trim().parse().ok()?),
        "sched_process_fork" => Kind::Fork(field("child_pid")?.parse().ok()?),
        "sched_process_exec" => Kind::Exec(field("filename")?.to_owned()),
        _ => return None,
    };
    Some(Event { thread, time: Duration::from_secs_f64(time.trim().parse().ok()?), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> (i32, u128, Kind) {
        let event = parse(line).expect("an event");
        (event.thread, event.time.as_micros(), event.kind)
    }

    #[test]
    fn lines_of_a_trace_are_read() {
        assert_eq!(
            event("           duetd-4711    [001] .....  1734.345678: sys_enter: NR 257 (ffffff9c, 7ffd, 0, 0, 0, 0)"),
            (4711, 1_734_345_678, Kind::Enter(257))
        );
        assert_eq!(
            event(" tokio-rt-worker-12 [000] ....1 1.000002: sys_exit: NR 0 = -11"),
            (12, 1_000_002, Kind::Exit(0, -11))
        );
        assert_eq!(
            event("  a b-7  [000] ..... 1.5: sched_process_fork: comm=a b pid=7 child_comm=a b child_pid=9"),
            (7, 1_500_000, Kind::Fork(9))
        );
        assert_eq!(
            event("  sh-9  [000] ..... 1.5: sched_process_exec: filename=/sbin/init pid=9 old_pid=9"),
            (9, 1_500_000, Kind::Exec("/sbin/init".to_owned()))
        );
        assert_eq!(parse("# tracer: nop"), None);
    }
}
