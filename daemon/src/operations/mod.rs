//! Background operations: what a 202 answer points at.
//!
//! An operation is one tokio task and a record of how it goes. The record can be read, waited for, cancelled, and
//! (for exec and console) connected to by websocket; each change is an event. A finished record stays readable for
//! a few seconds, as clients fetch it once more after its last event, and then goes: the daemon does not grow with
//! what it has done.

mod sockets;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use duet_client::api::{self, OperationClass, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{Error, Kind, Result};
use crate::events::{Events, Type};
pub use sockets::{Socket, Sockets};

/// How long a finished operation can still be read.
const KEPT_AFTER_END: Duration = Duration::from_secs(5);

/// What an operation is about, known before it runs.
pub struct Plan {
    /// What a person reads: `Creating instance`.
    pub description: &'static str,
    /// Paths of what it touches, by sort: `instances` -> `/1.0/instances/c1`.
    pub resources: BTreeMap<String, Vec<String>>,
    /// Metadata known from the start.
    pub metadata: Map<String, Value>,
    /// Whether `DELETE` on it is honoured.
    pub may_cancel: bool,
    /// The websockets it waits for, if it is of that class.
    pub sockets: Option<Sockets>,
}

impl Plan {
    /// A task about nothing in particular.
    pub fn new(description: &'static str) -> Self {
        Self { description, resources: BTreeMap::new(), metadata: Map::new(), may_cancel: false, sockets: None }
    }

    /// Names an instance that it touches.
    #[must_use]
    pub fn instance(self, name: &str) -> Self {
        self.resource("instances", format!("/1.0/instances/{name}"))
    }

    /// Names an instance and a snapshot of it that it touches.
    #[must_use]
    pub fn snapshot(self, instance: &str, snapshot: &str) -> Self {
        self.instance(instance)
            .resource("instances_snapshots", format!("/1.0/instances/{instance}/snapshots/{snapshot}"))
    }

    /// Names anything that it touches.
    #[must_use]
    pub fn resource(mut self, sort: &str, path: String) -> Self {
        self.resources.entry(sort.to_owned()).or_default().push(path);
        self
    }

    /// Allows it to be cancelled.
    #[must_use]
    pub fn cancellable(mut self) -> Self {
        self.may_cancel = true;
        self
    }

    /// Sets one metadata value known from the start.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    /// Makes it one that clients connect to; the secrets go into its metadata.
    #[must_use]
    pub fn with_sockets(mut self, sockets: Sockets) -> Self {
        self.metadata.insert("fds".into(), sockets.secrets());
        self.sockets = Some(sockets);
        self.may_cancel = true;
        self
    }
}

struct Record {
    status: StatusCode,
    updated_at: Timestamp,
    metadata: Map<String, Value>,
    err: String,
}

/// One operation.
pub struct Operation {
    id: Uuid,
    description: &'static str,
    created_at: Timestamp,
    resources: BTreeMap<String, Vec<String>>,
    may_cancel: bool,
    sockets: Option<Sockets>,
    record: Mutex<Record>,
    /// Wakes those who wait; carries whether it has ended.
    ended: watch::Sender<bool>,
    cancel: CancellationToken,
    events: Events,
}

impl Operation {
    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Its path.
    pub fn path(&self) -> String {
        format!("/1.0/operations/{}", self.id)
    }

    /// Fires when a client asked for an end.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// The websockets it waits for.
    pub fn sockets(&self) -> Option<&Sockets> {
        self.sockets.as_ref()
    }

    /// Whether it has ended, well or not.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) {
        // The sender lives as long as self: it cannot close under us.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Its wire form now.
    pub fn render(&self) -> api::Operation {
        let record = self.lock();
        api::Operation {
            id: self.id.to_string(),
            class: if self.sockets.is_some() { OperationClass::Websocket } else { OperationClass::Task },
            description: self.description.to_owned(),
            created_at: self.created_at.into(),
            updated_at: record.updated_at.into(),
            status: record.status.to_string(),
            status_code: record.status,
            resources: self.resources.clone(),
            metadata: (!record.metadata.is_empty()).then(|| record.metadata.clone()),
            may_cancel: self.may_cancel && !record.status.is_final(),
            err: record.err.clone(),
            location: "none".to_owned(),
        }
    }

    /// Sets metadata values and says so.
    pub fn update(&self, values: impl IntoIterator<Item = (String, Value)>) {
        {
            let mut record = self.lock();
            record.metadata.extend(values);
            record.updated_at = Timestamp::now();
        }
        self.announce();
    }

    /// Reports how far a long step has come, as Incus' clients show it: `key` ends in `_progress`.
    pub fn progress(&self, stage: &str, text: String, percent: Option<u64>) {
        let mut progress = serde_json::json!({ "stage": stage });
        if let Some(percent) = percent {
            progress["percent"] = percent.to_string().into();
        }
        self.update([(format!("{stage}_progress"), text.into()), ("progress".to_owned(), progress)]);
    }

    fn set_status(&self, status: StatusCode, err: String) {
        {
            let mut record = self.lock();
            record.status = status;
            record.err = err;
            if !matches!(status, StatusCode::Running) {
                record.updated_at = Timestamp::now();
            }
        }
        self.announce();
        if status.is_final() {
            self.ended.send_replace(true);
        }
    }

    fn announce(&self) {
        self.events.send(Type::Operation, || serde_json::to_value(self.render()).unwrap_or_default());
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operations that run or have just ended.
#[derive(Clone)]
pub struct Operations {
    known: Arc<Mutex<HashMap<Uuid, Arc<Operation>>>>,
    events: Events,
}

impl Operations {
    /// None yet.
    pub fn new(events: Events) -> Self {
        Self { known: Arc::default(), events }
    }

    /// Starts `work` in the background and gives its record at once.
    pub fn spawn<F, W>(&self, plan: Plan, work: W) -> Arc<Operation>
    where
        W: FnOnce(Arc<Operation>) -> F,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let now = Timestamp::now();
        let operation = Arc::new(Operation {
            id: Uuid::new_v4(),
            description: plan.description,
            created_at: now,
            resources: plan.resources,
            may_cancel: plan.may_cancel,
            sockets: plan.sockets,
            record: Mutex::new(Record {
                status: StatusCode::Pending,
                updated_at: now,
                metadata: plan.metadata,
                err: String::new(),
            }),
            ended: watch::Sender::new(false),
            cancel: CancellationToken::new(),
            events: self.events.clone(),
        });
        self.lock().insert(operation.id, Arc::clone(&operation));
        operation.announce();
        operation.set_status(StatusCode::Running, String::new());
        let running = tokio::spawn(work(Arc::clone(&operation)));
        tokio::spawn(Self::settle(self.clone(), Arc::clone(&operation), running));
        operation
    }

    /// Records how the work ended, and forgets the operation a little later.
    async fn settle(self, operation: Arc<Operation>, running: tokio::task::JoinHandle<Result<()>>) {
        let outcome = match running.await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(operation = %operation.id, %error, "an operation ended abnormally");
                Err(Error::from(error))
            }
        };
        match outcome {
            Ok(()) => operation.set_status(StatusCode::Success, String::new()),
            Err(error) if operation.cancel.is_cancelled() => {
                operation.set_status(StatusCode::Cancelled, error.sentence());
            }
            Err(error) => {
                tracing::info!(operation = %operation.id, what = operation.description, %error, "operation failed");
                operation.set_status(StatusCode::Failure, error.sentence());
            }
        }
        tokio::time::sleep(KEPT_AFTER_END).await;
        self.lock().remove(&operation.id);
    }

    /// One operation by the id in its path.
    ///
    /// # Errors
    /// Not found.
    pub fn get(&self, id: &str) -> Result<Arc<Operation>> {
        id.parse()
            .ok()
            .and_then(|id: Uuid| self.lock().get(&id).cloned())
            .ok_or_else(|| Error::not_found("Operation not found"))
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Vec<Arc<Operation>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by_key(|o| (o.created_at, o.id));
        all
    }

    /// Asks an operation to end early.
    ///
    /// # Errors
    /// Where it cannot be cancelled.
    pub fn cancel(&self, id: &str) -> Result<()> {
        let operation = self.get(id)?;
        if !operation.render().may_cancel {
            return Err(Error::new(Kind::Invalid, "This operation can't be cancelled"));
        }
        operation.cancel.cancel();
        Ok(())
    }

    /// Waits for every operation that ends by itself: sessions with websockets are for their clients to end.
    pub async fn wait_tasks(&self) {
        for operation in self.list().into_iter().filter(|o| o.sockets.is_none()) {
            operation.wait().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Operation>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
