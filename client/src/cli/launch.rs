//! launch and create (init).

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;

use anyhow::{Context as _, bail};
use clap::Args;

use super::complete::RECIPES;
use super::context::{Context, Named as _};
use super::lifecycle::{kind_from_flags, wait_for};
use super::output::{from_yaml, print_line};
use super::parse::{device_option, key_value, local_name};
use crate::Url;
use crate::api::{InstanceSource, InstancesPost, Operation, WaitCondition};
use crate::http::Error;

/// What is common to launch and create.
#[derive(Debug, Args)]
pub(crate) struct NewInstance {
    /// An image's alias or fingerprint, such as debian/13 (with --empty: the instance's name)
    #[arg(required_unless_present = "empty", add = super::complete::images())]
    image: Option<String>,
    /// The instance's name; one is made up if it is left out
    name: Option<String>,
    /// A profile (may be repeated; "default" if there is none)
    #[arg(short, long = "profile", value_name = "PROFILE", add = super::complete::profiles())]
    profiles: Vec<String>,
    /// No profile at all
    #[arg(long, conflicts_with = "profiles")]
    no_profiles: bool,
    /// A configuration key (may be repeated)
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    /// An option of a device, also of one that a profile brings (may be repeated)
    #[arg(short, long, value_name = "DEVICE,KEY=VALUE", value_parser = device_option)]
    device: Vec<(String, String, String)>,
    /// Delete the instance when it stops
    #[arg(short, long)]
    ephemeral: bool,
    /// The network to connect to instead of the profile's
    #[arg(short, long, add = super::complete::networks())]
    network: Option<String>,
    /// The storage pool for its root instead of the profile's
    #[arg(short, long, add = super::complete::pools())]
    storage: Option<String>,
    /// Words for people
    #[arg(long)]
    description: Option<String>,
    /// A size by its name in a cloud
    #[arg(short = 't', long = "type", value_name = "SIZE")]
    size: Option<String>,
    /// Start from an empty root
    #[arg(long)]
    empty: bool,
    /// A virtual machine
    #[arg(long)]
    vm: bool,
}

/// Create and start an instance
///
/// More configuration can be given as YAML on standard input, from a file or a pipe.
#[derive(Debug, Args)]
pub(crate) struct Launch {
    #[command(flatten)]
    new: NewInstance,
    /// Attach to the console at once
    #[arg(long)]
    console: bool,
    /// Wait until the instance has it: running, ipv4, ipv6, ready; several separated by commas
    #[arg(long, value_delimiter = ',', value_name = "FOR")]
    wait: Vec<WaitCondition>,
    /// How long to wait, in seconds; -1 for as long as it takes
    #[arg(long, default_value_t = crate::api::WAIT_DEFAULT_SECONDS, allow_negative_numbers = true)]
    wait_timeout: i64,
}

impl Launch {
    /// Runs the command; the exit status is the console's.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<u8> {
        let name = create(context, self.new, "Launching", true).await?;
        if !self.wait.is_empty() {
            wait_for(context, &name, &self.wait, self.wait_timeout).await?;
        }
        if self.console { super::console::attach(context, &name).await } else { Ok(0) }
    }
}

/// Create an instance without starting it
///
/// More configuration can be given as YAML on standard input, from a file or a pipe.
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    new: NewInstance,
}

impl Create {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        create(context, self.new, "Creating", false).await.map(drop)
    }
}

/// Creates an instance and returns its name.
async fn create(context: &Context, new: NewInstance, verb: &str, start: bool) -> anyhow::Result<String> {
    let (image, name) = match (new.empty, &new.image, &new.name) {
        (false, None, _) => bail!("name an image (\"duet image list\" shows them), or say --empty"),
        (false, Some(image), name) => (Some(local_name(image)?.to_owned()), name.clone()),
        (true, name, None) => (None, name.clone()),
        (true, _, Some(_)) => bail!("with --empty there is no image: give just the instance's name"),
    };
    let name = local_name(name.as_deref().unwrap_or_default())?.to_owned();
    let request = request(&new, &name, start)?;
    let label = format!("{verb} {}", if name.is_empty() { "the instance" } else { &name });
    let operation = match &image {
        None => {
            let source = InstanceSource { kind: "none".into(), ..InstanceSource::default() };
            submit(context, &label, InstancesPost { source, ..request }).await?
        }
        Some(image) => from_image(context, &label, request, image).await?,
    };
    let made = made_name(&operation).map_or(name.clone(), str::to_owned);
    if name.is_empty() && !context.quiet {
        print_line(&format!("Instance name is: {made}"))?;
    }
    Ok(made)
}

/// The request without its source.
fn request(new: &NewInstance, name: &str, start: bool) -> anyhow::Result<InstancesPost> {
    let mut request: InstancesPost = match piped_input()? {
        Some(text) => from_yaml(&text).context("standard input holds no instance configuration")?,
        None => InstancesPost::default(),
    };
    request.name = name.to_owned();
    request.start = start;
    request.kind = kind_from_flags(new.vm);
    request.ephemeral |= new.ephemeral;
    request.instance_type = new.size.clone().unwrap_or_default();
    if let Some(description) = &new.description {
        request.description.clone_from(description);
    }
    if new.no_profiles {
        request.profiles = Some(Vec::new());
    } else if !new.profiles.is_empty() {
        request.profiles = Some(new.profiles.clone());
    }
    request.config.extend(new.config.iter().cloned());
    if let Some(network) = &new.network {
        let nic = [("type", "nic"), ("network", network), ("name", "eth0")];
        request.devices.insert("eth0".into(), nic.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }
    if let Some(pool) = &new.storage {
        let root = [("type", "disk"), ("path", "/"), ("pool", pool)];
        request.devices.insert("root".into(), root.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }
    for (device, key, value) in &new.device {
        request.devices.entry(device.clone()).or_default().insert(key.clone(), value.clone());
    }
    Ok(request)
}

/// Overrides of a device that only a profile has need the profile's other options beside them.
async fn complete_overrides(context: &Context, request: &mut InstancesPost) -> anyhow::Result<()> {
    if request.devices.values().all(|options| options.contains_key("type")) {
        return Ok(());
    }
    let default = vec!["default".to_owned()];
    for name in request.profiles.as_ref().unwrap_or(&default) {
        let profile: crate::api::Profile =
            context.client.get(&Url::new(&["1.0", "profiles", name])).await.named(name)?;
        for (device, options) in profile.devices {
            if let Some(own) = request.devices.get_mut(&device) {
                for (key, value) in options {
                    own.entry(key).or_insert(value);
                }
            }
        }
    }
    match request.devices.iter().find(|(_, options)| !options.contains_key("type")) {
        None => Ok(()),
        Some((device, _)) => {
            bail!("no profile has a device {device:?}; give its type as well, such as --device {device},type=disk")
        }
    }
}

/// Sends the request; once the daemon has taken it on, says what is going on, and waits.
async fn submit(context: &Context, label: &str, mut request: InstancesPost) -> anyhow::Result<Operation> {
    complete_overrides(context, &mut request).await?;
    let outcome = context.client.post(&Url::new(&["1.0", "instances"]), &request).await?;
    if !context.quiet {
        print_line(label)?;
    }
    let operation = context.finish(label, outcome).await?;
    operation.context("the daemon created the instance without an operation; it speaks another API")
}

/// Tries a name as an alias and, if it may be one, as a fingerprint.
async fn from_image(context: &Context, label: &str, request: InstancesPost, image: &str) -> anyhow::Result<Operation> {
    let hexadecimal = image.len() <= 64 && image.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let source = |fingerprint: bool| {
        let mut source = InstanceSource { kind: "image".into(), ..InstanceSource::default() };
        if fingerprint {
            source.fingerprint = image.to_owned()
        } else {
            source.alias = image.to_owned()
        };
        source
    };
    // Nobody gives an alias the look of a fingerprint.
    let first_as_fingerprint = hexadecimal && image.len() >= 12;
    let first = InstancesPost { source: source(first_as_fingerprint), ..request.clone() };
    let result = submit(context, label, first).await;
    let result = match result {
        Err(error) if hexadecimal && is_missing(&error) => {
            let second = InstancesPost { source: source(!first_as_fingerprint), ..request };
            submit(context, label, second).await
        }
        result => result,
    };
    result.map_err(|error| match is_missing(&error) && RECIPES.contains(&image) {
        true => error.context(format!("there is no image {image:?} yet (\"duet image build {image}\" makes it)")),
        false => error,
    })
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| match error {
        Error::Failed { message, .. } => message.contains("not found"),
        // Any 404 of a creation may also be a missing profile or pool.
        error => error.is_not_found() && error.to_string().to_lowercase().contains("image"),
    })
}

/// The new instance's name, from the operation's resources.
fn made_name(operation: &Operation) -> Option<&str> {
    let url = operation.resources.get("instances")?.first()?;
    url.rsplit('/').next()
}

/// What is piped or redirected into the command. A terminal, a socket and a device such as /dev/null hold no
/// configuration; a pipe is given a moment to show that somebody writes to it, so that one which is merely inherited
/// does not hold the command up.
pub(super) fn piped_input() -> anyhow::Result<Option<String>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let stdin = std::io::stdin();
    let owned = stdin.as_fd().try_clone_to_owned();
    let Ok(mut file) = owned.map(std::fs::File::from) else { return Ok(None) };
    let Ok(metadata) = file.metadata() else { return Ok(None) };
    let kind = metadata.file_type();
    if kind.is_fifo() {
        let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        if poll(&mut polled, Some(&moment)).unwrap_or(0) == 0 {
            return Ok(None);
        }
    } else if !kind.is_file() {
        return Ok(None);
    }
    let mut text = String::new();
    file.read_to_string(&mut text).context("cannot read standard input")?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}
