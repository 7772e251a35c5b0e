//! `duet console`: the instance's console, or its log.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::context::Context;
use super::output::{print, print_bytes};
use super::parse::required_name;
use super::streams::{End, drain, receive_all, send_all, send_control};
use super::terminal::{self, RawMode};
use crate::Url;
use crate::api::{InstanceConsolePost, SessionControl};
use crate::http::{Session, empty_body};

/// The byte of ctrl+a.
const CTRL_A: u8 = 0x01;

/// Attach to an instance's console
///
/// Ctrl+a and then q detaches; ctrl+a twice sends one.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// The instance
    #[arg(add = super::complete::instances())]
    instance: String,
    /// Show what the console has said since the instance started
    #[arg(long)]
    show_log: bool,
    /// Take the console from whoever has it
    #[arg(short, long)]
    force: bool,
    /// console, or vga for the screen of a virtual machine
    #[arg(short = 't', long = "type", default_value = "console")]
    kind: String,
}

impl Console {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<u8> {
        let instance = required_name(&self.instance, "instance")?;
        if self.show_log {
            return show_log(context, instance).await.map(|()| 0);
        }
        match self.kind.as_str() {
            "console" => attach_with(context, instance, self.force).await,
            kind => bail!("there is no console of the type {kind:?}; \"console\" is the one there is"),
        }
    }
}

/// Prints the console's log.
pub(super) async fn show_log(context: &Context, instance: &str) -> anyhow::Result<()> {
    let url = Url::new(&["1.0", "instances", instance, "console"]);
    let response = context.client.open(Method::GET, &url, HeaderMap::new(), empty_body()).await?;
    let bytes = response.into_body().collect().await.context("the console log broke off")?.to_bytes();
    print("Console log:\n\n")?;
    print_bytes(&bytes)?;
    print("\n")
}

/// Attaches to an instance's console; the result is our exit status.
pub(super) async fn attach(context: &Context, instance: &str) -> anyhow::Result<u8> {
    attach_with(context, instance, false).await
}

async fn attach_with(context: &Context, instance: &str, force: bool) -> anyhow::Result<u8> {
    let (width, height) = terminal::size();
    let request = InstanceConsolePost { width, height, kind: "console".into(), force };
    let mut resized = signal(SignalKind::window_change()).context("cannot catch signals")?;
    let session = context.client.console(instance, &request).await?;
    context.remark("To detach from the console, press: <ctrl>+a q");
    let raw = RawMode::enter().context("cannot set the terminal up")?;
    let Session { operation, control, streams } = session;
    let (mut control, control_receiver) = control.split();
    tokio::spawn(drain(control_receiver));
    let stream = streams.into_iter().next().context("the session has no stream")?;
    let (sender, receiver) = stream.split();
    let (forward, forwarded) = mpsc::channel(4);
    tokio::spawn(send_all(sender, forwarded, End::Untold));
    let mut output = std::pin::pin!(receive_all(receiver, tokio::io::stdout()));
    let mut detach = std::pin::pin!(pass_until_detached(terminal::stdin_chunks(), forward));
    let ended = loop {
        tokio::select! {
            biased;
            result = &mut output => break result.map(|()| false),
            () = &mut detach => break Ok(true),
            _ = resized.recv() => {
                let (width, height) = terminal::size();
                // If the stream is broken, the output is about to end.
                let _ = send_control(&mut control, &SessionControl::resize(width, height)).await;
            }
        }
    };
    drop(raw);
    let detached = ended?;
    let frame = CloseFrame { code: CloseCode::Normal, reason: "Detaching from console".into() };
    let _ = control.send(Message::Close(Some(frame))).await;
    if detached {
        context.remark("");
        return Ok(0);
    }
    context.client.wait(&operation).await?;
    Ok(0)
}

/// Passes input on until ctrl+a q is typed. The end of the input detaches only after everything was passed on.
async fn pass_until_detached(mut input: mpsc::Receiver<Bytes>, forward: mpsc::Sender<Bytes>) {
    let mut escape = Escape::default();
    while let Some(chunk) = input.recv().await {
        let (out, detach) = escape.feed(&chunk);
        if !out.is_empty() && forward.send(out.into()).await.is_err() {
            break;
        }
        if detach {
            return;
        }
    }
    // Input that merely ended (a pipe) leaves the console's output running until it ends itself.
    std::future::pending().await
}

/// Finds ctrl+a q in what is typed, even if it comes in pieces.
#[derive(Debug, Default)]
struct Escape {
    pending: bool,
}

impl Escape {
    /// What to send of a chunk, and whether the user wants to leave.
    fn feed(&mut self, chunk: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(chunk.len());
        for &byte in chunk {
            match (std::mem::take(&mut self.pending), byte) {
                (true, b'q') => return (out, true),
                (true, CTRL_A) => out.push(CTRL_A),
                (true, byte) => out.extend([CTRL_A, byte]),
                (false, CTRL_A) => self.pending = true,
                (false, byte) => out.push(byte),
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut escape = Escape::default();
        let mut all = Vec::new();
        for chunk in chunks {
            let (out, detach) = escape.feed(chunk);
            all.extend(out);
            if detach {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn the_escape_is_found_across_chunks() {
        assert_eq!(fed(&[b"ls\x01qrest"]), (b"ls".to_vec(), true));
        assert_eq!(fed(&[b"ls\x01", b"q"]), (b"ls".to_vec(), true));
    }

    #[test]
    fn other_uses_of_ctrl_a_pass() {
        assert_eq!(fed(&[b"\x01\x01q"]), (b"\x01q".to_vec(), false));
        assert_eq!(fed(&[b"a\x01", b"bq"]), (b"a\x01bq".to_vec(), false));
        assert_eq!(fed(&[b"plain q"]), (b"plain q".to_vec(), false));
    }
}
