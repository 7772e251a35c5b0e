//! Waiting for background operations.

use super::{Client, Error, Outcome, Url};
use crate::api::{Operation, StatusCode};

impl Client {
    /// Waits until an operation has ended, and returns it as it ended. A failed or cancelled one is an error.
    pub async fn wait(&self, operation: &Operation) -> Result<Operation, Error> {
        if operation.status_code.is_final() {
            return ended(operation.clone());
        }
        let url = Url::new(&["1.0", "operations", &operation.id, "wait"]).query("timeout", "-1");
        ended(self.get(&url).await?)
    }

    /// Waits if there is something to wait for.
    pub async fn finish(&self, outcome: Outcome) -> Result<Option<Operation>, Error> {
        match outcome {
            Outcome::Done(_) => Ok(None),
            Outcome::Background(operation) => self.wait(&operation).await.map(Some),
        }
    }

    /// Asks for an operation to be cancelled.
    pub async fn cancel(&self, operation: &Operation) -> Result<(), Error> {
        self.delete(&Url::new(&["1.0", "operations", &operation.id])).await?;
        Ok(())
    }
}

/// An operation's end as a result.
fn ended(operation: Operation) -> Result<Operation, Error> {
    match operation.status_code {
        StatusCode::Success => Ok(operation),
        _ => Err(Error::Failed {
            message: match operation.err.as_str() {
                "" => format!("{} ended as {}", operation.description, operation.status),
                text => text.to_owned(),
            },
            cancelled: operation.status_code == StatusCode::Cancelled,
            description: operation.description,
        }),
    }
}
