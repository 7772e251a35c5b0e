//! `duet config template`: the templates of files that an instance's image brings.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt as _;

use crate::Url;
use crate::cli::context::Context;
use crate::cli::editor::edit_text;
use crate::cli::output::{Format, Table, print, print_list};
use crate::cli::parse::required_name;
use crate::http::{empty_body, stream_body};

/// File templates of an instance
#[derive(Debug, Args)]
pub(crate) struct Template {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum TemplateCommand {
    /// List templates
    #[command(alias = "ls")]
    List {
        /// The instance
        #[arg(add = crate::cli::complete::instances())]
        instance: String,
        /// table, compact, csv, json or yaml
        #[arg(short, long, default_value = "table")]
        format: Format,
    },
    /// Show a template
    Show {
        /// The instance
        #[arg(add = crate::cli::complete::instances())]
        instance: String,
        /// The template
        template: String,
    },
    /// Create a template; its content is read from standard input if that is not a terminal
    Create {
        /// The instance
        #[arg(add = crate::cli::complete::instances())]
        instance: String,
        /// The template
        template: String,
    },
    /// Edit a template
    Edit {
        /// The instance
        #[arg(add = crate::cli::complete::instances())]
        instance: String,
        /// The template
        template: String,
    },
    /// Delete a template
    #[command(alias = "rm")]
    Delete {
        /// The instance
        #[arg(add = crate::cli::complete::instances())]
        instance: String,
        /// The template
        template: String,
    },
}

fn templates(instance: &str) -> anyhow::Result<Url> {
    Ok(Url::new(&["1.0", "instances", required_name(instance, "instance")?, "metadata", "templates"]))
}

async fn read(context: &Context, url: &Url) -> anyhow::Result<String> {
    let response = context.client.open(Method::GET, url, HeaderMap::new(), empty_body()).await?;
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn write(context: &Context, url: &Url, text: String) -> anyhow::Result<()> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let body = stream_body(stream::iter([Ok(Bytes::from(text))]));
    let outcome = context.client.upload(Method::POST, url, headers, body).await?;
    context.finish("Writing the template", outcome).await?;
    Ok(())
}

fn piped() -> anyhow::Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    std::io::read_to_string(std::io::stdin()).context("cannot read standard input").map(Some)
}

impl Template {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            TemplateCommand::List { instance, format } => {
                let names: Vec<String> = context.client.get(&templates(&instance)?).await?;
                print_list(&format, &names, || {
                    let mut table = Table::new(["FILENAME"]);
                    names.iter().for_each(|name| table.row(vec![name.clone()]));
                    table.sort();
                    table
                })
            }
            TemplateCommand::Show { instance, template } => {
                print(&read(context, &templates(&instance)?.query("path", &template)).await?)
            }
            TemplateCommand::Create { instance, template } => {
                let url = templates(&instance)?.query("path", &template);
                write(context, &url, piped()?.unwrap_or_default()).await
            }
            TemplateCommand::Edit { instance, template } => {
                let url = templates(&instance)?.query("path", &template);
                let text = match piped()? {
                    Some(text) => text,
                    None => edit_text(&read(context, &url).await?, ".tpl")?,
                };
                write(context, &url, text).await
            }
            TemplateCommand::Delete { instance, template } => {
                let url = templates(&instance)?.query("path", &template);
                let outcome = context.client.delete(&url).await?;
                context.finish("Deleting the template", outcome).await?;
                Ok(())
            }
        }
    }
}
