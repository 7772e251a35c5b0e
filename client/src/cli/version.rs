//! `duet version`.

use clap::Args;

use super::context::Context;
use super::output::print;
use crate::Url;
use crate::api::Server;

/// Show the versions of this command and of the daemon
#[derive(Debug, Args)]
pub(crate) struct Version {}

impl Version {
    /// Runs the command. A daemon that does not answer is not an error here.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let server = match context.client.get::<Server>(&Url::new(&["1.0"])).await {
            Ok(server) => server.environment.server_version,
            Err(error) if error.is_unreachable() => "unreachable".to_owned(),
            Err(error) => return Err(error.into()),
        };
        print(&format!("Client version: {}\nServer version: {server}\n", env!("CARGO_PKG_VERSION")))
    }
}
