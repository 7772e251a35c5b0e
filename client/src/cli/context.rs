//! What every command gets: the client, and how to show work in progress.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::api::{EventType, Operation};
use crate::http::{Client, Error, Outcome};

/// How long an operation may take before its progress is shown; most end sooner and cost no second connection.
const QUIET_PERIOD: Duration = Duration::from_millis(250);

/// The client and the global flags.
pub(crate) struct Context {
    /// The daemon's client.
    pub(crate) client: Client,
    /// The daemon's directory.
    pub(crate) directory: PathBuf,
    /// Whether progress and remarks are left out.
    pub(crate) quiet: bool,
}

impl Context {
    /// Says something that is not a result, unless told to be quiet.
    pub(crate) fn remark(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// A spinner on the terminal, or nothing where there is none.
    pub(crate) fn spinner(&self, label: &str) -> ProgressBar {
        if self.quiet || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {prefix}{msg} ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// Waits for what a change has set going, showing its progress. Ctrl+C asks for a cancellable operation to be
    /// cancelled, and leaves one that cannot be cancelled to itself.
    pub(crate) async fn finish(&self, label: &str, outcome: Outcome) -> anyhow::Result<Option<Operation>> {
        let Outcome::Background(operation) = outcome else { return Ok(None) };
        let mut wait = std::pin::pin!(self.client.wait(&operation));
        tokio::select! {
            biased;
            result = &mut wait => return Ok(Some(result?)),
            () = tokio::time::sleep(QUIET_PERIOD) => {}
        }
        let bar = self.spinner(label);
        let result = tokio::select! {
            biased;
            result = &mut wait => result.map(Some).map_err(anyhow::Error::from),
            never = self.follow(&operation, &bar) => match never {},
            signal = tokio::signal::ctrl_c() => {
                bar.finish_and_clear();
                signal.context("cannot wait for ctrl+c")?;
                if operation.may_cancel {
                    self.client.cancel(&operation).await?;
                    self.remark("Cancelling...");
                    wait.await.map(Some).map_err(anyhow::Error::from)
                } else {
                    Err(anyhow::anyhow!(
                        "interrupted; \"{}\" goes on in the background as operation {}",
                        operation.description, operation.id
                    ))
                }
            }
        };
        bar.finish_and_clear();
        result
    }

    /// Shows an operation's progress as its events come; never ends by itself.
    async fn follow(&self, operation: &Operation, bar: &ProgressBar) -> std::convert::Infallible {
        if !bar.is_hidden()
            && let Ok(mut events) = self.client.events(Some("operation")).await
        {
            while let Ok(Some(event)) = events.next().await {
                if event.kind != EventType::Operation {
                    continue;
                }
                let Ok(update) = serde_json::from_value::<Operation>(event.metadata) else { continue };
                if update.id == operation.id
                    && let Some(text) = update.progress_text()
                {
                    bar.set_message(format!(": {text}"));
                }
            }
        }
        std::future::pending().await
    }
}

/// Runs the same thing for several names side by side. Failures are told apart by name; the first ones are printed,
/// the last one is returned.
pub(crate) async fn for_each<F>(names: &[String], work: impl Fn(String) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    if let [name] = names {
        return work(name.clone()).await;
    }
    let results = futures_util::future::join_all(names.iter().map(|name| work(name.clone()))).await;
    let failed: HashMap<&String, anyhow::Error> =
        names.iter().zip(results).filter_map(|(name, result)| Some((name, result.err()?))).collect();
    if failed.is_empty() {
        return Ok(());
    }
    for name in names {
        if let Some(error) = failed.get(name) {
            eprintln!("{name}: {error:#}");
        }
    }
    anyhow::bail!("{} of {} failed", failed.len(), names.len())
}

/// Turns "no such thing" into `None`.
pub(crate) fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Says which thing was not found where the daemon's sentence does not ("Profile not found").
pub(crate) trait Named<T> {
    /// Puts the name before the sentence if it is not in it.
    fn named(self, name: &str) -> anyhow::Result<T>;
}

impl<T> Named<T> for Result<T, Error> {
    fn named(self, name: &str) -> anyhow::Result<T> {
        self.map_err(|error| match error.is_not_found() && !error.to_string().contains(name) {
            true => anyhow::Error::from(error).context(name.to_owned()),
            false => error.into(),
        })
    }
}
