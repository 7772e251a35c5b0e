//! The daemon's life: open the state, find what runs, serve, go.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Parts, Paths};
use crate::apparmor::AppArmor;
use crate::error::{Context, Error, Result};
use crate::events::Events;
use crate::grace::GracePeriods;
use crate::images::Images;
use crate::instances::{Instances, boot, schedule};
use crate::inventory::{Inventory, ProfileRow};
use crate::machines::Machines;
use crate::network;
use crate::networks::DEFAULT_NETWORK;
use crate::operations::Operations;
use crate::pools::{DEFAULT_POOL, Pools};
use crate::service::Passed;
use crate::systemd::{self, Systemd};
use crate::warnings::Warnings;
use crate::{api, host, images, instances, neighbours, networks, pools, service};

/// How long running operations may take to end when the daemon goes down.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long answers that are due may take to be sent when the daemon was asked to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Threads for work that blocks; each costs little while it idles, and they go when idle.
const WORKERS: usize = 64;

/// What the command line says.
pub struct Options {
    /// The state directory.
    pub dir: PathBuf,
    /// The group that may use the socket.
    pub group: String,
    /// The monitor's program.
    pub monitor: Option<PathBuf>,
    /// The sockets that systemd listens on for the daemon.
    pub passed: Passed,
}

/// Runs until a signal ends it. Instances run on.
///
/// # Errors
/// In one sentence, when the daemon cannot work here.
pub fn run(options: Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::invalid("duetd must be run as root"));
    }
    duet_sys::memory::one_arena();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(WORKERS)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .doing("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(options));
    // What still blocks (a copy, a removal) is interrupted; the next start finds what it left.
    runtime.shutdown_background();
    outcome
}

async fn serve(options: Options) -> Result<()> {
    let root = std::path::absolute(&options.dir).doing("DUET_DIR cannot be used")?;
    let paths = Paths { root };
    paths.create()?;
    let _lock = lock(&paths)?;
    let monitor = options.monitor.map_or_else(find_monitor, Ok)?;
    let passed = options.passed.listener(&paths.socket())?;
    let own_socket = passed.is_none();
    let app = open(paths, &monitor)?;
    let mut terminate = signal(SignalKind::terminate()).doing("cannot handle signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).doing("cannot handle signals")?;

    host::raise_limits();
    first_start(&app).await?;
    let links = boot::adopt(&app).await?;
    let all = instances::expand_all(&app)?;
    boot::sweep(&app).await;
    images::sweep(&app)?;

    let listener = match passed {
        Some(listener) => adopt(listener)?,
        None => listen(&app.paths.socket(), &options.group)?,
    };
    tracing::info!(socket = %app.paths.socket().display(), version = crate::VERSION, "serving");
    let stopping = app.shutdown.clone();
    let mut server = tokio::spawn(
        axum::serve(listener, api::router(app.clone()))
            .with_graceful_shutdown(async move { stopping.cancelled().await })
            .into_future(),
    );
    // Lookups are answered meanwhile.
    networks::bring_up_all(&app, &all).await?;
    networks::sweep(&app, &links).await;
    tokio::spawn(systemd::keep_dnsmasq(app.clone()));
    tokio::spawn(systemd::keep_names(app.clone()));
    app.ready.cancel();
    service::ready();
    // A start reads much that a daemon does not keep.
    duet_sys::memory::give_back();
    tokio::spawn(boot::autostart(app.clone(), all));
    tokio::spawn(schedule::run(app.clone()));
    tokio::spawn(neighbours::watch(app.clone()));
    tokio::spawn(pools::watch(app.clone()));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = app.leaving.cancelled() => {}
    }
    tracing::info!(running = app.instances.running().len(), "going down; what runs runs on");
    service::stopping();
    app.shutdown.cancel();
    drop(tokio::time::timeout(LAST_WORDS, app.operations.wait_tasks()).await);
    if app.leaving.is_cancelled() {
        // Whoever asked for it is answered.
        drop(tokio::time::timeout(LAST_ANSWERS, &mut server).await);
    }
    // Listeners of events and sessions are cut off with the process.
    server.abort();
    // systemd's own stays: who connects to it starts the daemon again.
    if own_socket {
        let _ = std::fs::remove_file(app.paths.socket());
    }
    Ok(())
}

fn open(paths: Paths, monitor: &Path) -> Result<App> {
    let inventory = Inventory::open(&paths.database())?;
    let events = Events::default();
    let network = network::Manager::new(&paths.root).map_err(networks::error)?;
    let pools = Pools::open(&paths, &inventory)?;
    let instances = Instances::new(&paths.root, monitor)?;
    let apparmor = AppArmor::detect(&paths.root, instances.cgroup_prefix());
    let systemd = Systemd::detect(instances.cgroups(), instances.cgroup_prefix());
    Ok(App::new(Parts {
        operations: Operations::new(events.clone()),
        apparmor,
        pools,
        instances,
        machines: Machines::new(monitor),
        systemd,
        grace: GracePeriods::new(paths.grace()),
        images: Images::default(),
        edits: Mutex::new(()),
        warnings: Warnings,
        closing: CancellationToken::new(),
        leaving: CancellationToken::new(),
        ready: CancellationToken::new(),
        shutdown: CancellationToken::new(),
        paths,
        inventory,
        events,
        network,
    }))
}

/// One daemon for each state directory.
fn lock(paths: &Paths) -> Result<File> {
    let path = paths.root.join("duetd.lock");
    let file = File::create(&path).doing(format_args!("cannot make {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Error::conflict(format!("another duetd works in {}: stop it, or use another --dir", paths.root.display()))
    })?;
    Ok(file)
}

/// The monitor is installed beside the daemon, or in the libexec directory of the same prefix.
fn find_monitor() -> Result<PathBuf> {
    let own = std::env::current_exe().doing("cannot find this program's own file")?;
    let dir = own.parent().unwrap_or(Path::new("/"));
    let places = [dir.join("duet-monitor"), dir.join("../libexec/duet/duet-monitor")];
    let found = places.iter().find(|place| place.is_file()).cloned();
    found.ok_or_else(|| Error::not_found(format!("duet-monitor is not beside {}: install it there", own.display())))
}

/// The pool, network and profile that a fresh host begins with.
async fn first_start(app: &App) -> Result<()> {
    if app.inventory.profile("default")?.is_some() {
        return Ok(());
    }
    if app.inventory.pool(DEFAULT_POOL)?.is_none() {
        pools::create(app, DEFAULT_POOL, "overlay", String::new(), BTreeMap::new()).await?;
    }
    let mut devices = BTreeMap::new();
    let device = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    devices.insert("root".to_owned(), device(&[("type", "disk"), ("path", "/"), ("pool", DEFAULT_POOL)]));
    if app.inventory.network(DEFAULT_NETWORK)?.is_none() {
        // A host where no bridge can be made still runs instances; the profile then has no NIC.
        if let Err(error) = networks::create(app, DEFAULT_NETWORK, String::new(), BTreeMap::new()).await {
            tracing::error!(%error, "the network {DEFAULT_NETWORK} could not be made: make one with \"duet network create\"");
        }
    }
    if app.inventory.network(DEFAULT_NETWORK)?.is_some() {
        let nic = [("type", "nic"), ("name", "eth0"), ("network", DEFAULT_NETWORK)];
        devices.insert("eth0".to_owned(), device(&nic));
    }
    let profile = ProfileRow {
        name: "default".to_owned(),
        description: "Default Duet profile".to_owned(),
        config: BTreeMap::new(),
        devices,
    };
    app.inventory.write(move |tx| profile.insert(tx)).await?;
    Ok(())
}

/// Serves on the socket that systemd made, whose mode and group are systemd's business (duetd.socket).
fn adopt(listener: std::os::unix::net::UnixListener) -> Result<UnixListener> {
    const DOING: &str = "cannot use the socket that systemd passes";
    listener.set_nonblocking(true).doing(DOING)?;
    UnixListener::from_std(listener).doing(DOING)
}

/// Listens on the API's socket. The lock says that whoever left an old one is gone.
fn listen(path: &Path, group: &str) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = listener.doing(format_args!("cannot listen on {}", path.display()))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(group) {
        std::os::unix::fs::chown(path, None, Some(group.gid.as_raw())).doing("cannot give the socket to its group")?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .doing("cannot open the socket to its group")?;
    }
    Ok(listener)
}
