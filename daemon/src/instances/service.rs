//! A stopped virtual machine's disk, served by a machine that runs nothing else.
//!
//! What is on the disk is the guest's: the host neither mounts it nor believes it. So it is given to a small machine of its
//! own, with the same kernel, whose agent mounts it and serves its files, and which is switched off afterwards. The
//! instance is held meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use duet_agent::setup::Setup;
use duet_container::cgroup::{Cgroup, CreateOptions, Limits};
use duet_control::client::MonitorClient;
use duet_control::protocol::{ExecStatus, Reply};
use duet_vm::runtime::Launched;
use duet_vm::spec::VmSpec;
use uuid::Uuid;

use super::expand::Expanded;
use super::machine::{Files, disk_spec};
use super::slot::Held;
use crate::app::App;
use crate::error::{Context, Error, Result, blocking};
use crate::machines::{self, Boot, ROOT_SERIAL, SERVING, disk::Disk};

/// The memory of such a machine in bytes.
const MEMORY: u64 = 256 << 20;
/// How long its agent may take to answer, where it is emulated on a busy host.
const BOOT: Duration = Duration::from_secs(90);
/// How often it is asked.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it may take to write everything out and switch itself off.
const GOODBYE: Duration = Duration::from_secs(60);
/// How long its control group may take to go.
const KILL: Duration = Duration::from_secs(20);

/// A machine that serves a disk until this is dropped, and whose instance is held as long.
pub struct Service {
    machine: Option<Machine>,
    held: Option<Held>,
}

/// What is to be put away.
struct Machine {
    run_dir: PathBuf,
    cgroup: Cgroup,
}

/// Boots a machine that serves this disk.
///
/// # Errors
/// Where it cannot be started, or its agent does not answer.
pub async fn serve(app: &App, held: Option<Held>, expanded: &Expanded, disk: Disk) -> Result<Service> {
    let row = &expanded.row;
    let engine = app.machines.engine().await?;
    let (disk, boot) = machines::prepare(app, disk, Setup::default()).await?;
    // No instance's name or id has an underscore.
    let own = format!("files_{}", Uuid::new_v4().simple());
    let run_dir = app.paths.serving(&own);
    std::fs::create_dir_all(&run_dir).doing("cannot make a directory for the machine that serves the disk")?;
    let log = std::fs::File::create(run_dir.join("monitor.log")).doing("cannot make its log")?;
    let (program, title) = (app.machines.programs().monitor()?, row.name.clone());
    let monitor = blocking(move || Launched::spawn(&title, &program, log).map_err(Error::internal)).await?;
    let layout = app.instances.cgroups();
    let group = app.instances.cgroup_name(&own);
    let options =
        CreateOptions { owner: (0, 0), limits: Limits::default(), devices: None, monitor: Some(monitor.pid()) };
    let cgroup = Cgroup::create(layout, &group, &options).doing("cannot make its control group")?;
    // From here on whatever fails ends it.
    let service = Service { machine: Some(Machine { run_dir: run_dir.clone(), cgroup: cgroup.clone() }), held };
    let mut files = Files::default();
    let Boot { kernel, initrd, modules: _ } = boot;
    let (uid, gid) = app.instances.host_ids().of_machine(row.id);
    let spec = VmSpec {
        name: row.name.clone(),
        run_dir: run_dir.clone(),
        console_log: run_dir.join("console.log"),
        accelerator: engine.accelerator,
        program: engine.program.clone(),
        cpus: 1,
        memory: MEMORY,
        kernel: files.pass(kernel.into()),
        initrd: files.pass(initrd),
        command_line: SERVING.to_owned(),
        disks: vec![disk_spec(&mut files, disk, ROOT_SERIAL)],
        nics: Vec::new(),
        user: duet_vm::spec::UserSpec { uid, gid },
        cgroups: cgroup.joined().into_iter().map(|dir| dir.path).collect(),
        notes: Default::default(),
    };
    blocking(move || {
        let fds: Vec<_> = files.0.iter().map(AsFd::as_fd).collect();
        let started = monitor.send(&spec, &fds).and_then(|starting| starting.wait_started());
        started.map_err(|e| Error::internal(format!("the machine that serves the disk does not start: {e}")))?;
        wait_agent(&run_dir)
    })
    .await?;
    Ok(service)
}

fn wait_agent(run_dir: &Path) -> Result<()> {
    let deadline = Instant::now() + BOOT;
    loop {
        let answer = MonitorClient::connect(run_dir).and_then(|client| client.guest_state(BOOT));
        let error = match answer {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let gone = matches!(error, duet_control::ClientError::NotRunning { .. } | duet_control::ClientError::Closed);
        if gone || Instant::now() >= deadline {
            let said = std::fs::read_to_string(run_dir.join("console.log")).unwrap_or_default();
            let said = said.lines().rev().find(|line| line.starts_with("duet: ")).unwrap_or("").trim().to_owned();
            return Err(Error::internal(format!("the virtual machine's disk cannot be served: {error} {said}")));
        }
        std::thread::sleep(PAUSE);
    }
}

impl Service {
    fn client(&self) -> Result<MonitorClient> {
        let machine = self.machine.as_ref().ok_or_else(|| Error::internal("the disk is not served any more"))?;
        MonitorClient::connect(&machine.run_dir).map_err(Error::internal)
    }

    /// A stream to a service for the disk's files.
    ///
    /// # Errors
    /// Where its agent does not answer. May block.
    pub fn files(&self) -> Result<OwnedFd> {
        self.client()?.files().map_err(|e| Error::invalid(e.to_string()))
    }

    /// Has the disk's root packed into `archive`.
    ///
    /// # Errors
    /// Where that cannot begin. May block.
    pub fn archive(&self, archive: OwnedFd) -> Result<Archiving> {
        let client = self.client()?;
        let (complaint, errors) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("cannot make a pipe")?;
        client.archive(archive.as_fd(), errors.as_fd()).map_err(|e| Error::invalid(e.to_string()))?;
        Ok(Archiving { client, complaint })
    }
}

/// A root that is being packed.
pub struct Archiving {
    client: MonitorClient,
    complaint: OwnedFd,
}

impl Archiving {
    /// Waits for the end, when all of the archive was read.
    ///
    /// # Errors
    /// Where the archive is not whole. May block.
    pub fn finish(self) -> Result<()> {
        let end = self.client.receive_until(Instant::now() + GOODBYE).map_err(Error::internal)?;
        if let Some((Reply::ExecExited { status: ExecStatus::Code(0) }, _)) = end {
            return Ok(());
        }
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(
            &mut std::io::Read::take(std::fs::File::from(self.complaint), 4096),
            &mut said,
        );
        Err(Error::internal(format!("the root filesystem was not packed wholly: {}", said.trim())))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let (machine, held) = (self.machine.take(), self.held.take());
        // The instance is free when nothing has its disk open any more.
        let end = move || {
            if let Some(machine) = machine {
                machine.put_away();
            }
            drop(held);
        };
        // Whoever wrote something is answered when it is on the disk: a worker waits for that. The main thread is the
        // runtime's, which waits for nothing.
        if rustix::thread::gettid() == rustix::process::getpid() {
            std::thread::spawn(end);
        } else {
            end();
        }
    }
}

impl Machine {
    fn put_away(self) {
        // What was written is on the disk before it ends; an agent that does not answer has written nothing.
        let asked = MonitorClient::connect(&self.run_dir).and_then(|client| {
            client.watch()?;
            client.stop()?;
            let deadline = Instant::now() + GOODBYE;
            while !matches!(client.receive_until(deadline)?, Some((Reply::Exited(_), _)) | None) {}
            Ok(())
        });
        if let Err(error) = asked {
            tracing::debug!(%error, "a machine that served a disk is ended");
        }
        if let Err(error) = self.cgroup.destroy(Instant::now() + KILL) {
            tracing::warn!(%error, "what served a disk stays behind");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.run_dir) {
            tracing::warn!(%error, "a directory of what served a disk stays behind");
        }
    }
}
