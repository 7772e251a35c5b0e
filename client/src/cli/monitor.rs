//! `duet monitor`: events as they happen.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::context::Context;
use super::output::{print, print_line, to_yaml};
use crate::api::{Event, EventLifecycle, EventLogging, EventType, Operation};

/// How events are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Style {
    /// YAML documents
    Yaml,
    /// A JSON object in each line
    Json,
    /// A line for people
    Pretty,
}

/// Watch what happens, until interrupted
#[derive(Debug, Args)]
pub(crate) struct Monitor {
    /// Only events of this type: lifecycle, operation, logging (may be repeated)
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    kinds: Vec<String>,
    /// Only log lines as important as this: debug, info, warning, error
    #[arg(long, value_name = "LEVEL")]
    loglevel: Option<String>,
    /// How events are printed
    #[arg(short, long, value_enum, default_value_t = Style::Yaml)]
    format: Style,
    /// A line for people (same as --format=pretty)
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// All projects (there is one)
    #[arg(long, hide = true)]
    all_projects: bool,
}

/// The levels of log lines, the least important first.
const LEVELS: [&str; 4] = ["debug", "info", "warning", "error"];

impl Monitor {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let _ = self.all_projects;
        let style = if self.pretty { Style::Pretty } else { self.format };
        let least = match &self.loglevel {
            None => 0,
            Some(level) => LEVELS
                .iter()
                .position(|known| known == level)
                .with_context(|| format!("{level:?} is not a level; the levels are {}", LEVELS.join(", ")))?,
        };
        let kinds = (!self.kinds.is_empty()).then(|| self.kinds.join(","));
        let mut events = context.client.events(kinds.as_deref()).await?;
        while let Some(text) = events.next_text().await? {
            let value: Value = serde_json::from_str(&text).context("an event is not JSON")?;
            if level(&value) < least {
                continue;
            }
            match style {
                Style::Json => print_line(&text)?,
                Style::Yaml => print(&format!("{}\n\n", to_yaml(&value)?))?,
                Style::Pretty => print_line(&line(value))?,
            }
        }
        anyhow::bail!("the daemon ended the stream of events")
    }
}

/// How important an event is; what is not a log line always is.
fn level(event: &Value) -> usize {
    if event["type"] != "logging" {
        return LEVELS.len();
    }
    let level = event["metadata"]["level"].as_str().unwrap_or("error");
    LEVELS.iter().position(|known| *known == level || (level == "warn" && *known == "warning")).unwrap_or(LEVELS.len())
}

/// An event in one line.
fn line(value: Value) -> String {
    let plain = value.to_string();
    let Ok(event) = serde_json::from_value::<Event>(value) else { return plain };
    let time = event.timestamp.0.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
    let what = match event.kind {
        EventType::Lifecycle => serde_json::from_value(event.metadata).ok().map(|lifecycle: EventLifecycle| {
            let context = lifecycle.context.filter(|context| !context.is_empty());
            let context = context.map(|context| format!(" {}", Value::Object(context))).unwrap_or_default();
            format!("{} {}{context}", lifecycle.action, lifecycle.source)
        }),
        EventType::Operation => serde_json::from_value(event.metadata).ok().map(|operation: Operation| {
            let error = if operation.err.is_empty() { String::new() } else { format!(": {}", operation.err) };
            let progress = operation.progress_text().map(|text| format!(" ({text})")).unwrap_or_default();
            format!("operation {} {}: {}{progress}{error}", operation.id, operation.description, operation.status)
        }),
        EventType::Logging | EventType::NetworkAcl => {
            serde_json::from_value(event.metadata).ok().map(|logging: EventLogging| {
                let fields: String = logging.context.iter().map(|(key, value)| format!(" {key}={value:?}")).collect();
                format!("{} {}{fields}", logging.level.to_uppercase(), logging.message)
            })
        }
    };
    format!("{time} {}", what.unwrap_or(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines() {
        let text = line(json!({
            "type": "lifecycle", "timestamp": "2026-11-23T17:17:19.5Z",
            "metadata": {"action": "instance-created", "source": "/1.0/instances/c1"}
        }));
        assert!(text.ends_with("instance-created /1.0/instances/c1"), "{text}");
        let text = line(json!({
            "type": "operation", "timestamp": "2026-11-23T17:17:19.5Z",
            "metadata": {"id": "x", "description": "Creating instance", "status": "Failure", "status_code": 400,
                         "err": "no space"}
        }));
        assert!(text.ends_with("operation x Creating instance: Failure: no space"), "{text}");
    }

    #[test]
    fn levels() {
        assert_eq!(level(&json!({"type": "logging", "metadata": {"level": "debug"}})), 0);
        assert_eq!(level(&json!({"type": "logging", "metadata": {"level": "warn"}})), 2);
        assert_eq!(level(&json!({"type": "lifecycle"})), 4);
    }
}
