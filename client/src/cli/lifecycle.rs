//! start, stop, restart, pause, resume, delete, rename and wait.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::context::{Context, Named as _, for_each, found};
use super::parse::{instance_and_snapshot, required_name};
use crate::Url;
use crate::api::{Instance, InstancePost, InstanceState, InstanceStatePut, InstanceType, StatusCode, WaitCondition};
use crate::http::Error;

fn instance_url(name: &str) -> Url {
    Url::new(&["1.0", "instances", name])
}

/// Which instances a command is for.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Instances
    #[arg(value_name = "INSTANCE", add = super::complete::instances())]
    names: Vec<String>,
    /// Every instance that the command applies to
    #[arg(long)]
    all: bool,
}

impl Which {
    /// The names; for `--all` those of the instances in a state that `applies`.
    async fn names(&self, context: &Context, applies: fn(StatusCode) -> bool) -> anyhow::Result<Vec<String>> {
        match (self.all, self.names.is_empty()) {
            (true, false) => bail!("either name instances or say --all, not both"),
            (false, true) => bail!("name at least one instance, or say --all"),
            (false, false) => self.names.iter().map(|name| Ok(required_name(name, "instance")?.to_owned())).collect(),
            (true, true) => {
                let url = Url::new(&["1.0", "instances"]).query("recursion", "1");
                let all: Vec<Instance> = context.client.get(&url).await?;
                Ok(all.into_iter().filter(|i| applies(i.status_code)).map(|i| i.name).collect())
            }
        }
    }
}

/// Asks for a change of state and waits for it.
async fn change_state(context: &Context, name: &str, label: &str, put: &InstanceStatePut) -> anyhow::Result<()> {
    let url = Url::new(&["1.0", "instances", name, "state"]);
    let outcome = context.client.put(&url, put, None).await?;
    context.finish(&format!("{label} {name}"), outcome).await?;
    Ok(())
}

fn action(action: &str) -> InstanceStatePut {
    InstanceStatePut { action: action.into(), timeout: -1, ..InstanceStatePut::default() }
}

/// Start instances
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    which: Which,
    /// Attach to the console at once
    #[arg(long)]
    console: bool,
    /// Unsupported: running states are not saved
    #[arg(long, hide = true)]
    stateless: bool,
}

impl Start {
    /// Runs the command; the exit status is the console's.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<u8> {
        let _ = self.stateless;
        let names = self.which.names(context, |code| code == StatusCode::Stopped).await?;
        for_each(&names, |name| async move { start(context, &name).await }).await?;
        match (self.console, names.as_slice()) {
            (false, _) => Ok(0),
            (true, [name]) => super::console::attach(context, name).await,
            (true, _) => bail!("--console needs exactly one instance"),
        }
    }
}

/// Starts an instance, or lets a paused one go on.
pub(super) async fn start(context: &Context, name: &str) -> anyhow::Result<()> {
    let result = change_state(context, name, "Starting", &action("start")).await;
    let Err(error) = result else { return Ok(()) };
    // The daemon says what failed to run; what the instance said is in its log.
    if has_failed(&error) {
        return Err(error.context(format!("{name} did not start (see \"duet info {name} --show-log\")")));
    }
    Err(error)
}

/// True for an operation that tried and failed, and not for one that found nothing to do ("already running").
fn has_failed(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Failed { message, .. }) if !message.contains(" already "))
}

/// Stop instances
#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    which: Which,
    /// Kill instead of asking the instance to shut down
    #[arg(short, long)]
    force: bool,
    /// How long the shutdown may take, in seconds; -1 for the instance's own setting
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    timeout: i64,
    /// Save the running state
    #[arg(long)]
    stateful: bool,
}

impl Stop {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let running =
            |code| matches!(code, StatusCode::Running | StatusCode::Frozen | StatusCode::Ready | StatusCode::Error);
        let names = self.which.names(context, running).await?;
        let put = InstanceStatePut {
            action: "stop".into(),
            timeout: self.timeout,
            force: self.force,
            stateful: self.stateful,
        };
        for_each(&names, |name| {
            let put = &put;
            async move {
                let result = change_state(context, &name, "Stopping", put).await;
                match &result {
                    Err(error) if !put.force && has_failed(error) => {
                        result.with_context(|| format!("{name} did not stop (\"duet stop -f {name}\" kills it)"))
                    }
                    _ => result,
                }
            }
        })
        .await
    }
}

/// Restart instances
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    which: Which,
    /// Kill instead of asking the instance to shut down
    #[arg(short, long)]
    force: bool,
    /// How long the shutdown may take, in seconds; -1 for the instance's own setting
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    timeout: i64,
    /// Attach to the console at once
    #[arg(long)]
    console: bool,
}

impl Restart {
    /// Runs the command; the exit status is the console's.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<u8> {
        let names = self.which.names(context, |code| code == StatusCode::Running).await?;
        let put =
            InstanceStatePut { action: "restart".into(), timeout: self.timeout, force: self.force, stateful: false };
        for_each(&names, |name| {
            let put = &put;
            async move { change_state(context, &name, "Restarting", put).await }
        })
        .await?;
        match (self.console, names.as_slice()) {
            (false, _) => Ok(0),
            (true, [name]) => super::console::attach(context, name).await,
            (true, _) => bail!("--console needs exactly one instance"),
        }
    }
}

/// Pause instances: their processes stand still
#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    which: Which,
}

impl Pause {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let names = self.which.names(context, |code| code == StatusCode::Running).await?;
        for_each(&names, |name| async move { change_state(context, &name, "Pausing", &action("freeze")).await }).await
    }
}

/// Let paused instances go on
#[derive(Debug, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    which: Which,
}

impl Resume {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let names = self.which.names(context, |code| code == StatusCode::Frozen).await?;
        for_each(&names, |name| async move { change_state(context, &name, "Resuming", &action("unfreeze")).await })
            .await
    }
}

/// Delete instances
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Instances, or snapshots as INSTANCE/SNAPSHOT
    #[arg(value_name = "INSTANCE", required = true, add = super::complete::instances())]
    names: Vec<String>,
    /// Stop running instances first (they are killed)
    #[arg(short, long)]
    force: bool,
    /// Ask before each
    #[arg(short, long)]
    interactive: bool,
}

impl Delete {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        for name in &self.names {
            instance_and_snapshot(name)?;
        }
        let mut names = self.names;
        if self.interactive {
            let mut confirmed = Vec::new();
            for name in names {
                if confirm(&format!("Delete {name}?"))? {
                    confirmed.push(name);
                }
            }
            names = confirmed;
        }
        for_each(&names, |name| async move { delete(context, &name, self.force).await }).await
    }
}

/// Asks a question whose default answer is no.
pub(super) fn confirm(question: &str) -> anyhow::Result<bool> {
    eprint!("{question} (yes/no) [no]: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

async fn delete(context: &Context, name: &str, force: bool) -> anyhow::Result<()> {
    let (instance, snapshot) = instance_and_snapshot(name)?;
    if let Some(snapshot) = snapshot {
        let url = Url::new(&["1.0", "instances", instance, "snapshots", snapshot]);
        let outcome = context.client.delete(&url).await.named(snapshot)?;
        context.finish(&format!("Deleting {name}"), outcome).await?;
        return Ok(());
    }
    let url = instance_url(instance);
    if force {
        let current: Instance = context.client.get(&url).await?;
        if !matches!(current.status_code, StatusCode::Stopped | StatusCode::Error) {
            let put = InstanceStatePut { action: "stop".into(), timeout: -1, force: true, stateful: false };
            let stopped = change_state(context, instance, "Stopping", &put).await;
            if let Err(error) = stopped {
                // It may have stopped by itself in between.
                let now = found(context.client.get::<Instance>(&url).await)?;
                if now.is_some_and(|now| now.status_code != StatusCode::Stopped) {
                    return Err(error);
                }
            }
            if current.ephemeral {
                // Stopping it deletes it, now or in a moment; whoever comes first is right.
                return match found(context.client.delete(&url).await) {
                    Ok(Some(outcome)) => {
                        let _ = context.finish(&format!("Deleting {instance}"), outcome).await;
                        Ok(())
                    }
                    Ok(None) => Ok(()),
                    Err(error) => match found(context.client.get::<Instance>(&url).await)? {
                        None => Ok(()),
                        Some(_) => Err(error.into()),
                    },
                };
            }
        }
    }
    let outcome = match context.client.delete(&url).await {
        Err(error) if !force && is_running(context, &url).await => {
            return Err(error).with_context(|| {
                format!("{instance} is running (\"duet stop {instance}\" first, or \"duet delete -f {instance}\")")
            });
        }
        result => result?,
    };
    context.finish(&format!("Deleting {instance}"), outcome).await?;
    Ok(())
}

async fn is_running(context: &Context, url: &Url) -> bool {
    let instance = context.client.get::<Instance>(url).await;
    instance.is_ok_and(|instance| instance.status_code != StatusCode::Stopped)
}

/// Rename an instance
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Its name
    #[arg(add = super::complete::instances())]
    instance: String,
    /// Its new name
    new_name: String,
}

impl Rename {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let new_name = required_name(&self.new_name, "instance")?;
        rename(context, required_name(&self.instance, "instance")?, new_name).await
    }
}

/// Renames an instance.
pub(super) async fn rename(context: &Context, name: &str, new_name: &str) -> anyhow::Result<()> {
    let post = InstancePost { name: new_name.to_owned(), ..InstancePost::default() };
    let outcome = context.client.post(&instance_url(name), &post).await?;
    context.finish(&format!("Renaming {name}"), outcome).await?;
    Ok(())
}

/// Wait until an instance is running, has an address or is ready
///
/// The daemon answers as soon as everything named by --for holds, or when the time has passed; nothing is polled.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// What to wait for: running, ipv4, ipv6, ready, stopped; several separated by commas
    #[arg(long = "for", value_delimiter = ',', default_value = "running")]
    conditions: Vec<WaitCondition>,
    /// How long, in seconds; -1 for as long as it takes
    #[arg(long, default_value_t = crate::api::WAIT_DEFAULT_SECONDS, allow_negative_numbers = true)]
    timeout: i64,
}

impl Wait {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = required_name(&self.instance, "instance")?;
        wait_for(context, name, &self.conditions, self.timeout).await?;
        Ok(())
    }
}

/// Waits for conditions in one call.
pub(super) async fn wait_for(
    context: &Context,
    name: &str,
    conditions: &[WaitCondition],
    timeout: i64,
) -> anyhow::Result<InstanceState> {
    let names: Vec<&str> = conditions.iter().map(|condition| condition.name()).collect();
    let url = Url::new(&["1.0", "instances", name, "wait"])
        .query("for", &names.join(","))
        .query("timeout", &timeout.to_string());
    let mut wait = std::pin::pin!(context.client.get::<InstanceState>(&url));
    tokio::select! {
        biased;
        result = &mut wait => return Ok(result?),
        () = tokio::time::sleep(Duration::from_millis(500)) => {}
    }
    let bar = context.spinner(&format!("Waiting for {name}: {}", names.join(", ")));
    let result = wait.await;
    bar.finish_and_clear();
    Ok(result?)
}

/// The word for a kind of instance.
pub(super) fn kind_from_flags(vm: bool) -> InstanceType {
    if vm { InstanceType::VirtualMachine } else { InstanceType::Container }
}
