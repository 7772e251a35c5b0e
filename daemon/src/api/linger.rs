//! Answers that come before their request was read whole.
//!
//! An upload that is refused (the disk is full, the form is wrong) is answered at once, while the client still writes. If
//! nobody read on, the connection would be closed under it, and most clients tell of a broken pipe then and never look
//! at the answer. So what is left of a body is read and thrown away, for a while.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use futures_util::StreamExt;
use hyper::body::{Frame, SizeHint};

/// How long a client may go on after its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request's body whose rest is thrown away when nobody reads it.
struct Lingering(Body);

/// Wraps a request's body.
pub fn body(body: Body) -> Body {
    if body.is_end_stream() { body } else { Body::new(Lingering(body)) }
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.0.is_end_stream() {
            return;
        }
        let mut rest = std::mem::take(&mut self.0).into_data_stream();
        tokio::spawn(async move {
            let read_on = async { while let Some(Ok(_)) = rest.next().await {} };
            drop(tokio::time::timeout(PATIENCE, read_on).await);
        });
    }
}
