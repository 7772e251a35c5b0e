//! Starting a virtual machine: from its rows to a machine that runs its kernel.
//!
//! As with a container (see [`super::start`]), each side effect registers its undo, and a daemon that dies in between takes
//! the monitor's handshake socket with it, on which the monitor ends the machine.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use duet_agent::setup;
use duet_container::cgroup::{CpuList, Limits};
use duet_vm::runtime::Launched;
use duet_vm::spec::{DiskSpec, LayerFormat, LayerSpec, NicSpec, UserSpec, VmSpec};
use duet_vmm::image::Format;
use jiff::Timestamp;

use super::expand::Expanded;
use super::guest::Guest;
use super::live::{Inside, Live, Parts};
use super::plan::{self, NicPlan, Plan, Volatile};
use super::slot::Held;
use super::start::{self, make_cgroup, prepare};
use super::templates;
use super::undo::Undo;
use crate::app::App;
use crate::config::values::CpuLimit;
use crate::config::{self, Device, DiskDevice};
use crate::error::{Context, Error, Result, blocking};
use crate::machines::{self, Boot, COMMAND_LINE, MODULES_SERIAL, ROOT_SERIAL, disk};
use crate::network::{Tap, TapSpec};

/// Starts a virtual machine that the caller holds; gives what runs, and what is to be recorded of it.
///
/// # Errors
/// With the step that failed; nothing is left of it.
pub(super) async fn start(
    app: &App,
    held: &Held,
    expanded: &Expanded,
    plan: &Plan,
    undo: &mut Undo,
) -> Result<(Arc<Live>, Volatile)> {
    let name = &expanded.row.name;
    check(plan)?;
    let engine = app.machines.engine().await?;
    let setup = setup(app, expanded, plan)?;
    let disk = root_disk(app, expanded).await?;
    let (disk, boot) = machines::prepare(app, disk, setup).await?;
    let mut taps = Vec::with_capacity(plan.nics.len());
    for nic in &plan.nics {
        taps.push(tap(app, nic).await?);
    }

    let log = prepare(app, &expanded.row, undo)?;
    let (program, title) = (app.machines.programs().monitor()?, name.clone());
    let monitor = blocking(move || Launched::spawn(&title, &program, log).map_err(failure)).await?;
    let (cpus, limits) = limits(app, expanded, plan)?;
    let pinned = limits.cpus.clone();
    let cgroup = make_cgroup(app, name, plan, None, limits, monitor.pid(), undo).await?;

    let mut files = Files::default();
    let settings = &plan.settings;
    let memory = settings.memory.map_or(Ok(machines::DEFAULT_MEMORY), |limit| {
        Ok::<_, Error>(limit.bytes(plan::host_memory()?).next_multiple_of(2 << 20))
    })?;
    let (uid, gid) = app.instances.host_ids().of_machine(expanded.row.id);
    let mut changes = start::changes(plan, Vec::new());
    changes.push(("volatile.vm.engine".to_owned(), Some(engine.name().to_owned())));
    let Boot { kernel, initrd, modules } = boot;
    let mut disks = vec![disk_spec(&mut files, disk, ROOT_SERIAL)];
    if let Some(modules) = modules {
        let file = files.pass(modules.into());
        let layers = vec![LayerSpec { file, format: LayerFormat::Raw }];
        disks.push(DiskSpec { layers, read_only: true, serial: MODULES_SERIAL.to_owned() });
    }
    let spec = VmSpec {
        name: name.clone(),
        run_dir: app.paths.run(expanded.row.id),
        console_log: app.paths.logs(name).join("console.log"),
        accelerator: engine.accelerator,
        program: engine.program.clone(),
        cpus,
        memory,
        kernel: files.pass(kernel.into()),
        initrd: files.pass(initrd),
        command_line: COMMAND_LINE.to_owned(),
        disks,
        nics: plan.nics.iter().zip(taps).map(|(nic, tap)| nic_spec(&mut files, nic, tap)).collect(),
        user: UserSpec { uid, gid },
        cgroups: cgroup.joined().into_iter().map(|dir| dir.path).collect(),
        notes: changes.iter().cloned().collect(),
    };
    let started = blocking(move || {
        let fds: Vec<_> = files.0.iter().map(AsFd::as_fd).collect();
        monitor.send(&spec, &fds).and_then(|starting| starting.wait_started()).map_err(failure)
    })
    .await?;
    let run_dir = app.paths.run(held.slot().id());
    let live = Live::new(Parts {
        name: name.clone(),
        inside: Inside::Machine(Guest::spawn(&run_dir)),
        run_dir,
        init_pid: started.pid,
        pidfd: started.pidfd,
        started_at: Timestamp::now(),
        cgroup,
        nics: plan.nics.iter().map(|nic| (nic.device.clone(), nic.host_name.clone())).collect(),
        cpus: pinned,
        frozen: false,
    });
    Ok((live, changes))
}

fn failure(error: duet_vm::runtime::StartError) -> Error {
    Error::internal(format!("Failed to start the instance: {error}"))
}

/// What goes to the monitor beside the specification.
#[derive(Default)]
pub(super) struct Files(pub(super) Vec<OwnedFd>);

impl Files {
    /// Adds a descriptor and gives its index.
    pub(super) fn pass(&mut self, file: OwnedFd) -> usize {
        self.0.push(file);
        self.0.len() - 1
    }
}

/// Refuses what a virtual machine cannot have, before anything is done.
fn check(plan: &Plan) -> Result<()> {
    for (name, device) in &plan.devices {
        if let Device::Disk(DiskDevice::Host { .. }) = device {
            return Err(Error::invalid(format!(
                "device \"{name}\": folders of the host are not served in virtual machines by this version; remove it, or \
                 mask it in this instance with type=none",
            )));
        }
    }
    if plan.root_read_only {
        return Err(Error::invalid("a virtual machine's root disk cannot be read-only"));
    }
    Ok(())
}

/// What the guest is told at its start.
fn setup(app: &App, expanded: &Expanded, plan: &Plan) -> Result<setup::Setup> {
    let files = templates::due(app, expanded)?;
    Ok(setup::Setup {
        hostname: Some(expanded.row.name.clone()),
        files: files
            .into_iter()
            .map(|file| setup::File { path: file.path, content: file.content, create_only: file.create_only })
            .collect(),
        nics: plan.nics.iter().map(|nic| setup::Nic { mac: nic.hwaddr.0, name: nic.peer_name.clone() }).collect(),
    })
}

/// Opens an instance's root disk. Nothing else has it open.
///
/// # Errors
/// As [`disk::open`].
pub async fn root_disk(app: &App, expanded: &Expanded) -> Result<disk::Disk> {
    let (pool, volume) = (app.pools.get(&expanded.row.pool)?, expanded.row.volume.clone());
    let size = machines::disk_size(crate::pools::root_size(app, &expanded.devices)?);
    app.instances.forget_usage(expanded.row.id);
    blocking(move || disk::open(&pool.volume_root(&volume, None)?, size)).await
}

pub(super) fn disk_spec(files: &mut Files, disk: disk::Disk, serial: &str) -> DiskSpec {
    let layers = disk.0.into_iter().map(|layer| LayerSpec {
        file: files.pass(layer.file.into()),
        format: match layer.format {
            Format::Raw => LayerFormat::Raw,
            Format::Qcow2 => LayerFormat::Qcow2,
        },
    });
    DiskSpec { layers: layers.collect(), read_only: false, serial: serial.to_owned() }
}

async fn tap(app: &App, nic: &NicPlan) -> Result<Tap> {
    let spec = TapSpec { host_name: &nic.host_name, parent: &nic.parent, mtu: nic.mtu };
    app.network.attach_tap(&spec).await.map_err(|e| {
        Error::new(crate::networks::error_kind(&e), format!("Failed to start device \"{}\": {e}", nic.device))
    })
}

fn nic_spec(files: &mut Files, nic: &NicPlan, tap: Tap) -> NicSpec {
    // No virtio device has more (the header's MTU has 16 bits).
    let mtu = u16::try_from(tap.mtu).unwrap_or(u16::MAX);
    NicSpec { tap: files.pass(tap.file), mac: nic.hwaddr.0, mtu }
}

/// How many CPUs the machine has, and what limits its process: the CPUs it may run on where they are named, and how it
/// competes with others. Its memory is its own affair.
fn limits(app: &App, expanded: &Expanded, plan: &Plan) -> Result<(u8, Limits)> {
    let limits = plan::limits(app, expanded, &plan.settings, &plan.devices)?;
    let (count, pinned) = match &plan.settings.cpu {
        None => (1, None),
        Some(CpuLimit::Count(count)) => (usize::try_from(*count).unwrap_or(usize::MAX), None),
        Some(CpuLimit::Set(_)) => {
            let cpus: CpuList = limits.cpus.clone().ok_or_else(|| Error::internal("no CPUs were chosen"))?;
            (cpus.iter().count(), Some(cpus))
        }
    };
    let most = usize::from(duet_vmm::spec::MAX_CPUS);
    let count = u8::try_from(count).ok().filter(|count| usize::from(*count) <= most);
    let count = count.ok_or_else(|| Error::invalid(format!("limits.cpu: a virtual machine has 1 to {most} CPUs")))?;
    Ok((
        count,
        Limits { cpus: pinned, memory: None, swap: duet_container::cgroup::Swap::Allowed, processes: None, ..limits },
    ))
}

/// Refuses those changes of a running machine's configuration that it would feel now and cannot.
///
/// # Errors
/// With what to do instead.
pub(super) fn check_changes(old: &Expanded, new: &Expanded) -> Result<()> {
    let changes = config::config_changes(&old.config, &new.config);
    if changes.touches("limits.") {
        return Err(Error::invalid(
            "the limits of a running virtual machine cannot be changed by this version: stop it first",
        ));
    }
    let devices = config::device_changes(&plan::typed_devices(old)?, &plan::typed_devices(new)?);
    match devices.add.iter().chain(&devices.remove).chain(&devices.update).next() {
        Some(device) => Err(Error::invalid(format!(
            "device \"{device}\": the devices of a running virtual machine cannot be changed by this version: stop it first"
        ))),
        None => Ok(()),
    }
}

/// The descriptor of a stream to a running machine's files.
///
/// # Errors
/// Where its agent does not answer.
pub(super) async fn files(live: &Live) -> Result<OwnedFd> {
    live.call(|monitor| monitor.files()).await.doing("the virtual machine's files cannot be reached")
}
