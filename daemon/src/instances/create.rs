//! Making instances: from an image, from another instance or snapshot, or empty.
//!
//! On disk first, then one row: whatever fails or dies in between leaves nothing that the inventory names. The name
//! is reserved in memory meanwhile, so that two requests for one name cannot both go to work.

use std::sync::Arc;

use duet_client::api::{InstanceType, InstancesPost};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::expand;
use super::lifecycle::Request;
use super::slot::Slot;
use super::{addresses, copy, start};
use crate::app::App;
use crate::config::{
    Device, DevicesOf, InstanceKind, NameKind, drop_unset, drop_unset_options, validate_devices,
    validate_instance_config, validate_name,
};
use crate::error::{Error, Kind, Result, blocking};
use crate::inventory::{self, ConfigMap, DeviceMap, ImageRow, InstanceRow, Power};
use crate::machines;
use crate::network::MacAddr;
use crate::operations::Operation;
use crate::pools;
use crate::storage::{Fingerprint, Made, Volume};

/// What a checked request asks for.
pub struct Order {
    /// The name, reserved.
    pub name: super::Reservation,
    /// The row to be, but for its volume.
    pub draft: Draft,
    /// Where its root comes from.
    pub source: Source,
    /// Whether to start it.
    pub start: bool,
}

/// A row to be, but for its volume.
pub struct Draft {
    /// See [`InstanceRow`].
    pub kind: InstanceKind,
    /// See [`InstanceRow`].
    pub architecture: String,
    /// See [`InstanceRow`].
    pub description: String,
    /// See [`InstanceRow`].
    pub ephemeral: bool,
    /// See [`InstanceRow`].
    pub config: ConfigMap,
    /// See [`InstanceRow`].
    pub devices: DeviceMap,
    /// See [`InstanceRow`].
    pub profiles: Vec<String>,
    /// See [`InstanceRow`].
    pub pool: String,
    /// What its root disk is limited to, in bytes.
    pub size: Option<u64>,
}

/// Where a root comes from.
pub enum Source {
    /// An image of the store.
    Image(Box<ImageRow>),
    /// Nothing.
    Empty,
    /// Another instance or its snapshot.
    Copy(Box<copy::From>),
}

/// Checks a request against the inventory; nothing is made yet.
///
/// # Errors
/// With what is wrong.
pub fn check(app: &App, mut post: InstancesPost) -> Result<Order> {
    if post.stateful {
        return Err(Error::invalid("instances are not made with their memory: leave stateful out"));
    }
    if post.name.is_empty() {
        post.name = free_name(app)?;
    }
    validate_name(NameKind::Instance, &post.name).map_err(|e| Error::invalid(e.to_string()))?;
    let name = app.instances.reserve(app, &post.name)?;
    let source = match post.source.kind.as_str() {
        "image" => Source::Image(Box::new(crate::images::resolve(app, &post.source)?)),
        "none" if post.kind == InstanceType::VirtualMachine => {
            return Err(Error::invalid("a virtual machine is not made empty: name an image"));
        }
        "none" => Source::Empty,
        "copy" => Source::Copy(Box::new(copy::resolve(app, &post.source)?)),
        other => {
            return Err(Error::invalid(format!("the source type \"{other}\" is not served: use image, copy or none")));
        }
    };
    let draft = draft(app, post.clone(), &source)?;
    Ok(Order { name, draft, source, start: post.start })
}

fn draft(app: &App, mut post: InstancesPost, source: &Source) -> Result<Draft> {
    let kind = match source {
        // Incus' clients repeat it, others leave it out.
        Source::Copy(from) => from.kind(),
        _ => post.kind.into(),
    };
    let mut architecture = std::mem::take(&mut post.architecture);
    let mut profiles = post.profiles.take();
    let mut config = std::mem::take(&mut post.config);
    match source {
        Source::Image(image) => {
            let served = ["x86_64", "i686"];
            if crate::ARCHITECTURE == "x86_64" && !served.contains(&image.architecture.as_str())
                || crate::ARCHITECTURE != "x86_64" && image.architecture != crate::ARCHITECTURE
            {
                let (of, here) = (&image.architecture, crate::ARCHITECTURE);
                return Err(Error::invalid(format!("the image is for {of}, this host is {here}")));
            }
            if kind == InstanceKind::VirtualMachine {
                machines::image::check(image)?;
            }
            architecture.clone_from(&image.architecture);
            if profiles.is_none() && !image.profiles.is_empty() {
                profiles = Some(image.profiles.clone());
            }
            for (key, value) in &image.properties {
                config.entry(format!("image.{key}")).or_insert_with(|| value.clone());
            }
            config.insert("volatile.base_image".into(), image.fingerprint.clone());
        }
        Source::Copy(from) => {
            architecture.clone_from(from.architecture());
            from.inherit(&mut config, &mut post.devices, &mut profiles);
        }
        Source::Empty => {}
    }
    if architecture.is_empty() {
        architecture = crate::ARCHITECTURE.to_owned();
    }
    drop_unset(&mut config);
    drop_unset_options(&mut post.devices);
    let profiles = profiles.unwrap_or_else(|| vec!["default".to_owned()]);
    validate_instance_config(&config, kind).map_err(|e| Error::invalid(e.to_string()))?;
    validate_devices(&post.devices, DevicesOf::Profile).map_err(|e| Error::invalid(e.to_string()))?;
    let table = expand::profile_table(app)?;
    let (_, devices) = expand::apply(&table, &profiles, &config, &post.devices)?;
    let typed = validate_devices(&devices, DevicesOf::Instance(kind)).map_err(|e| Error::invalid(e.to_string()))?;
    expand::check_references(app, Some(kind), &devices)?;
    addresses::check(app, &post.name, &typed)?;
    let uuid = Uuid::new_v4().to_string();
    config.insert("volatile.uuid".into(), uuid.clone());
    config.insert("volatile.uuid.generation".into(), uuid);
    config.insert("volatile.cloud-init.instance-id".into(), Uuid::new_v4().to_string());
    config.insert("volatile.idmap.base".into(), "0".into());
    config.insert("volatile.last_state.power".into(), "STOPPED".into());
    config.insert(
        "volatile.apply_template".into(),
        if matches!(source, Source::Copy(_)) { "copy" } else { "create" }.into(),
    );
    for (device, kind) in &typed {
        let key = format!("volatile.{device}.hwaddr");
        if matches!(kind, Device::Nic(nic) if nic.hwaddr.is_none()) && !config.contains_key(&key) {
            config.insert(key, MacAddr::random(&mut rand::rng()).to_string());
        }
    }
    Ok(Draft {
        kind,
        architecture,
        description: post.description,
        ephemeral: post.ephemeral,
        pool: expand::root_pool(&devices)?,
        size: pools::root_size(app, &devices)?,
        config,
        devices: post.devices,
        profiles,
    })
}

/// Two words that no instance is called.
fn free_name(app: &App) -> Result<String> {
    use rand::seq::IndexedRandom;
    const FIRST: &[&str] = &[
        "able", "brave", "calm", "clever", "eager", "fair", "glad", "keen", "kind", "lively", "merry", "neat", "proud",
        "quick", "quiet", "sharp", "smart", "steady", "sunny", "swift", "tidy", "warm", "wise", "witty",
    ];
    const SECOND: &[&str] = &[
        "badger", "beaver", "crane", "dolphin", "falcon", "finch", "fox", "gecko", "heron", "ibex", "kiwi", "lark",
        "lynx", "marten", "newt", "otter", "owl", "panda", "quail", "raven", "robin", "seal", "stork", "wren",
    ];
    let mut rng = rand::rng();
    for attempt in 0..1000 {
        let (Some(first), Some(second)) = (FIRST.choose(&mut rng), SECOND.choose(&mut rng)) else { break };
        let name = if attempt < 100 { format!("{first}-{second}") } else { format!("{first}-{second}-{attempt}") };
        if app.inventory.instance(&name)?.is_none() {
            return Ok(name);
        }
    }
    Err(Error::conflict("no free name was found: name the instance"))
}

/// Makes what was ordered, and starts it where that was asked for.
///
/// # Errors
/// With the step that failed. An instance that was made but did not start stays, stopped.
pub async fn run(app: &App, order: Order, operation: &Arc<Operation>) -> Result<()> {
    let Order { name, draft, source, start } = order;
    let slot = match source {
        Source::Image(image) => from_image(app, &name, draft, *image, operation).await?,
        Source::Empty => {
            let pool = app.pools.get(&draft.pool)?;
            let made = blocking(move || pool.volume_create(None)).await?;
            commit(app, &name, draft, made, None).await?
        }
        Source::Copy(from) => copy::run(app, &name, draft, *from).await?,
    };
    let name = name.into_name();
    if start {
        let held = slot.claim(Request::Start)?;
        start::start(app, &held, &name).await?;
    }
    Ok(())
}

async fn from_image(
    app: &App,
    name: &super::Reservation,
    draft: Draft,
    image: ImageRow,
    operation: &Arc<Operation>,
) -> Result<Arc<Slot>> {
    if draft.kind == InstanceKind::VirtualMachine {
        let size = machines::image::base_size(machines::disk_size(draft.size));
        let (disk, kept) = machines::image::ensure(app, &image, &draft.pool, size, operation).await?;
        return from_pool(app, name, draft, disk, image.fingerprint, kept).await;
    }
    let kept = crate::images::ensure_unpacked(app, &image, &draft.pool, operation).await?;
    let fingerprint: Fingerprint = image.fingerprint.parse()?;
    from_pool(app, name, draft, fingerprint, image.fingerprint, kept).await
}

/// Makes an instance over what its pool has; `kept` keeps it there meanwhile.
async fn from_pool<T>(
    app: &App,
    name: &super::Reservation,
    draft: Draft,
    stands_on: Fingerprint,
    image: String,
    kept: Made<T>,
) -> Result<Arc<Slot>> {
    let pool = app.pools.get(&draft.pool)?;
    let made = blocking(move || pool.volume_create(Some(&stands_on))).await?;
    let slot = commit(app, name, draft, made, Some(image)).await?;
    drop(kept);
    Ok(slot)
}

/// Inserts the row of a volume that is on disk.
async fn commit(
    app: &App,
    name: &super::Reservation,
    draft: Draft,
    made: Made<Volume>,
    image: Option<String>,
) -> Result<Arc<Slot>> {
    limit(app, &draft, &made).await?;
    let row = draft.into_row(name.name(), (*made).clone());
    let (pool, kind) = (row.pool.clone(), row.kind);
    let id = app
        .inventory
        .write(move |tx| {
            if let Some(image) = image {
                inventory::images::touch(tx, &image, Timestamp::now())?;
            }
            row.insert(tx)
        })
        .await
        .map_err(|e| refused(e, name.name()))?;
    made.keep();
    announce(app, name.name(), &pool, kind);
    Ok(app.instances.slot(id))
}

/// Limits a new volume to its size.
pub(super) async fn limit(app: &App, draft: &Draft, volume: &Volume) -> Result<()> {
    let Some(size) = draft.size.filter(|_| draft.kind == InstanceKind::Container) else { return Ok(()) };
    let (pool, volume) = (app.pools.get(&draft.pool)?, volume.clone());
    let limited = blocking(move || pool.volume_limit(&volume, Some(size))).await;
    limited.map_err(|e| Error::invalid(format!("the root disk: {}", e.message)))
}

/// The failure of an insert in words.
pub(super) fn refused(error: inventory::Error, name: &str) -> Error {
    match error {
        inventory::Error::Exists => Error::conflict(format!("Instance \"{name}\" already exists")),
        inventory::Error::InUse => Error::new(Kind::Conflict, "a profile or pool it uses was removed meanwhile"),
        other => other.into(),
    }
}

/// Says that an instance was made.
pub(super) fn announce(app: &App, name: &str, pool: &str, kind: InstanceKind) {
    let context = json!({ "location": "none", "storage-pool": pool, "type": InstanceType::from(kind) });
    app.events.lifecycle("instance-created", format!("/1.0/instances/{name}"), context);
}

impl Draft {
    /// The row, once its volume is made.
    pub fn into_row(self, name: &str, volume: Volume) -> InstanceRow {
        InstanceRow {
            id: 0,
            name: name.to_owned(),
            kind: self.kind,
            architecture: self.architecture,
            description: self.description,
            ephemeral: self.ephemeral,
            power: Power::Stopped,
            config: self.config,
            devices: self.devices,
            profiles: self.profiles,
            pool: self.pool,
            volume,
            created_at: Timestamp::now(),
            last_used_at: Timestamp::UNIX_EPOCH,
        }
    }
}
