//! `duet query`: any request, by hand.

use anyhow::Context as _;
use clap::Args;
use http::Method;
use serde::{Deserialize as _, Serialize as _};
use serde_json::Value;

use super::context::Context;
use super::output::{print_bytes, print_line};
use super::parse::local_name;
use crate::Url;
use crate::api::{Operation, ResponseType};
use crate::http::Reply;

/// Send a request to the API
#[derive(Debug, Args)]
pub(crate) struct Query {
    /// The path, such as /1.0/instances?recursion=1
    path: String,
    /// The method
    #[arg(short = 'X', long, default_value = "GET")]
    request: Method,
    /// The body, as JSON
    #[arg(short, long)]
    data: Option<String>,
    /// Wait for the operation, if there is one
    #[arg(long)]
    wait: bool,
    /// Show the whole answer and not just what it holds
    #[arg(long)]
    raw: bool,
}

impl Query {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let path = if self.path.starts_with('/') { self.path.as_str() } else { local_name(&self.path)? };
        let url = Url::raw(path);
        let mut reply = context.client.raw(self.request, &url, self.data.map(String::into_bytes)).await?;
        if let Reply::Envelope(begun) = &reply
            && self.wait
            && begun.kind == ResponseType::Async
        {
            let operation = Operation::deserialize(&begun.metadata).context("the answer holds no operation")?;
            let url = Url::new(&["1.0", "operations", &operation.id, "wait"]).query("timeout", "-1");
            reply = context.client.raw(Method::GET, &url, None).await?;
        }
        let envelope = match reply {
            Reply::Envelope(envelope) => envelope,
            Reply::Other(bytes) => return print_bytes(&bytes),
        };
        if self.raw {
            return print_line(&tabbed(&serde_json::to_value(envelope)?)?);
        }
        match &envelope.metadata {
            Value::Null => Ok(()),
            Value::Object(map) if map.is_empty() => Ok(()),
            metadata => print_line(&tabbed(metadata)?),
        }
    }
}

/// JSON indented by tabs.
fn tabbed(value: &Value) -> anyhow::Result<String> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))?;
    Ok(String::from_utf8(out)?)
}
