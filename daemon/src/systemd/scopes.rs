//! Scope units: `duet-<instance>.scope` and `duet-dnsmasq-<network>.scope` below `duet.slice`.
//!
//! A scope is a unit around processes that somebody else started (systemd.scope(5)). With it `systemctl status` and
//! `systemd-cgls` show each instance, no restart of duetd.service touches it, and what is below its control group is
//! ours by contract (`Delegate=`). It is gone, and forgotten even if it failed (`CollectMode=`), once its last process is.
//!
//! Interface: org.freedesktop.systemd1.Manager(5): `StartTransientUnit(s name, s mode, a(sv) properties, a(sa(sv)) aux)`,
//! which answers with a job; the signal `JobRemoved(u id, o job, s unit, s result)` says that the job, and so the move of
//! the processes, is done. `SetUnitProperties(s name, b runtime, a(sv))` changes weights.
//!
//! At the host's shutdown systemd stops all scopes at once, by signals that tell a container nothing; `Before=` has that
//! wait until duet-instances.service, which stops instances in order, has done so.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::time::timeout;
use zbus::{Message, MessageStream, OwnedObjectPath, Variant, message};

use super::{DEADLINE, Error, Service, Systemd, escape};
use crate::app::App;

const MANAGER: Service = Service {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// What has the bus pass on the ends of jobs.
pub(super) const JOBS: &str = "type='signal',sender='org.freedesktop.systemd1',\
     interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// What systemd answers while the former unit of that name has not been forgotten yet.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// How long a start of an instance waits for its scope: less than its monitor waits for the specification.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long it may take to forget one whose last process is gone: it learns of it from the kernel.
const FORGET_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks whether it has. It announces units only to those who ask for all announcements about all units,
/// which costs the host more than a look.
const FORGET_LOOK: Duration = Duration::from_millis(20);

const NO_SCOPE: &str = "systemd makes no scope, instances start without one";
const NO_DNSMASQ_SCOPE: &str = "a dnsmasq gets no scope of its own";

/// What the units of dnsmasq begin with, after the prefix; no instance's can, since its dashes are escaped.
const DNSMASQ: &str = "dnsmasq-";

/// How an instance competes with others, as cgroup v2 counts (1 to 10000, of which 100 is usual). `None`: as usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// For CPU time.
    pub cpu: Option<u64>,
    /// For input and output.
    pub io: Option<u64>,
}

/// A scope unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The unit's name.
    pub unit: String,
    /// Its control group below the root.
    pub cgroup: String,
}

impl Systemd {
    /// The scope of an instance, whether it exists or not; `None` where there are no scopes.
    pub fn scope_of(&self, instance: &str) -> Option<Scope> {
        self.present.then(|| self.scope(&escape(instance)))
    }

    fn scope(&self, rest: &str) -> Scope {
        let unit = format!("{}-{rest}.scope", self.prefix);
        Scope { cgroup: format!("{}/{unit}", self.slice_group()), unit }
    }

    fn slice(&self) -> String {
        format!("{}.slice", self.prefix)
    }

    /// The control group of the slice. `a-b.slice` lies in `a.slice` (systemd.slice(5)).
    fn slice_group(&self) -> String {
        match self.prefix.split_once('-') {
            Some((outer, _)) => format!("{outer}.slice/{}", self.slice()),
            None => self.slice(),
        }
    }

    /// The control group that holds the scopes of all instances, and whether a group in it, by its whole name, is one;
    /// `None` where there are no scopes.
    pub fn scopes(&self) -> Option<(String, impl Fn(&str) -> bool + use<>)> {
        let beginning = format!("{}/{}-", self.slice_group(), self.prefix);
        let is_instance = move |group: &str| {
            let rest = group.strip_prefix(&beginning).and_then(|rest| rest.strip_suffix(".scope"));
            rest.is_some_and(|rest| !rest.starts_with(DNSMASQ))
        };
        self.present.then(|| (self.slice_group(), is_instance))
    }

    /// Puts a process that is to become an instance's monitor into a new scope. `None`: there are no scopes, or systemd
    /// could not be asked or refused; the instance then starts without one.
    pub async fn start_scope(&self, instance: &str, pid: u32, weights: Weights) -> Option<Scope> {
        let scope = self.scope_of(instance)?;
        let begun = Instant::now();
        let mut properties = vec![
            ("Description", Variant::from(format!("Duet instance {instance}"))),
            ("Before", Variant::from(vec!["duet-instances.service"])),
        ];
        properties.extend(weight_properties(weights, false));
        let started = timeout(START_DEADLINE, self.start(&scope, pid, properties)).await;
        match started.unwrap_or(Err(Error::Timeout)) {
            Ok(()) => {
                self.works(NO_SCOPE);
                tracing::debug!(unit = scope.unit, took = ?begun.elapsed(), "scope made");
                Some(scope)
            }
            Err(error) => {
                self.complain(NO_SCOPE, &error);
                None
            }
        }
    }

    /// Changes the weights of a running instance; does nothing where it has no scope.
    ///
    /// # Errors
    /// What systemd answered.
    pub async fn set_weights(&self, instance: &str, weights: Weights) -> Result<(), Error> {
        let Some(scope) = self.scope_of(instance) else { return Ok(()) };
        let properties = weight_properties(weights, true);
        self.call(&MANAGER, "SetUnitProperties", &(scope.unit, true, properties)).await.map(drop)
    }

    async fn start(&self, scope: &Scope, pid: u32, more: Vec<(&str, Variant<'_>)>) -> Result<(), Error> {
        let mut properties = vec![
            ("Slice", Variant::from(self.slice())),
            ("PIDs", Variant::from(vec![pid])),
            ("Delegate", Variant::from(true)),
            ("TasksMax", Variant::from(u64::MAX)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        properties.extend(more);
        let body = (scope.unit.as_str(), "fail", properties, Vec::<(&str, Vec<(&str, Variant<'_>)>)>::new());
        let bus = self.bus().await?;
        // From before the call, so that the end of its job is not missed; and read during the call, since nothing else is
        // received while a stream is full.
        let mut signals = MessageStream::from(&bus);
        let mut ended = BTreeMap::new();
        let reply = {
            let mut call = pin!(self.request(&body));
            loop {
                tokio::select! {
                    reply = &mut call => break reply?,
                    signal = signals.next() => note(signal, &scope.unit, &mut ended)?,
                }
            }
        };
        let job: OwnedObjectPath = reply.body().deserialize()?;
        let result = async {
            loop {
                if let Some(result) = ended.remove(job.as_str()) {
                    return Ok(result);
                }
                note(signals.next().await, &scope.unit, &mut ended)?;
            }
        };
        match timeout(DEADLINE, result).await.map_err(|_| Error::Timeout)? {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => Err(Error::Job { unit: scope.unit.clone(), result }),
            Err(error) => Err(error),
        }
    }

    /// Asks for a unit, again while the former one of that name is there.
    async fn request<B>(&self, body: &B) -> Result<Message, Error>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let deadline = Instant::now() + FORGET_DEADLINE;
        loop {
            match self.call(&MANAGER, "StartTransientUnit", body).await {
                Err(error) if error.name().as_deref() == Some(UNIT_EXISTS) && Instant::now() < deadline => {
                    tokio::time::sleep(FORGET_LOOK).await;
                }
                other => return other,
            }
        }
    }

    /// Has a network's dnsmasq, which `pid` is, in a scope of its own, unless it is in one already.
    async fn adopt_dnsmasq(&self, network: &str, pid: u32) -> Result<(), Error> {
        let scope = self.scope(&format!("{DNSMASQ}{}", escape(network)));
        let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if group.is_empty() || group.lines().any(|line| line.ends_with(&scope.unit)) {
            return Ok(());
        }
        let properties = vec![
            ("Description", Variant::from(format!("DHCP and DNS of the Duet network {network}"))),
            ("Before", Variant::from(vec!["duet-instances.service", "duetd.service"])),
        ];
        self.start(&scope, pid, properties).await
    }
}

/// Keeps what became of the jobs of one unit, by their paths.
fn note(signal: Option<zbus::Result<Message>>, unit: &str, ended: &mut BTreeMap<String, String>) -> Result<(), Error> {
    let broken = || Error::Job { unit: unit.to_owned(), result: "the connection to the bus broke".to_owned() };
    let signal = signal.ok_or_else(broken)??;
    let header = signal.header();
    if header.message_type() != message::Type::Signal || header.member().is_none_or(|member| member != "JobRemoved") {
        return Ok(());
    }
    let body = signal.body();
    let (_, job, of, result): (u32, OwnedObjectPath, String, String) = body.deserialize()?;
    if of == unit {
        ended.insert(job.to_string(), result);
    }
    Ok(())
}

/// The properties that set weights. The usual ones need no saying, unless there may be others in force.
fn weight_properties(weights: Weights, all: bool) -> Vec<(&'static str, Variant<'static>)> {
    /// What systemd takes for "not set" (`CGROUP_WEIGHT_INVALID`).
    const UNSET: u64 = u64::MAX;
    [("CPUWeight", weights.cpu), ("IOWeight", weights.io)]
        .into_iter()
        .filter(|(_, weight)| all || weight.is_some())
        .map(|(name, weight)| (name, Variant::from(weight.unwrap_or(UNSET))))
        .collect()
}

/// Keeps the dnsmasq of every network outside of the daemon's own control group, in which it would be taken for a
/// left-over process of a former daemon.
pub async fn keep_dnsmasq(app: App) {
    if !app.systemd.present() {
        return;
    }
    loop {
        // Asked for before looking, so that no change falls between.
        let changed = app.network.changed();
        for (network, pid) in app.network.dnsmasqs() {
            match app.systemd.adopt_dnsmasq(&network, pid).await {
                Ok(()) => app.systemd.works(NO_DNSMASQ_SCOPE),
                Err(error) => app.systemd.complain(NO_DNSMASQ_SCOPE, &error),
            }
        }
        tokio::select! {
            () = changed => {}
            () = app.shutdown.cancelled() => return,
        }
    }
}
