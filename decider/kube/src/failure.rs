//! What the API server said when it did not do as it was asked.

use std::{error::Error as _, time::Duration};

use kube::core::Status;
use thiserror::Error;

/// A request that is not answered by then has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// It refused. Its own words name object and verb.
    #[error("{}", words(.0))]
    Api(Box<Status>),
    /// It was not reached, or its answer was not understood.
    #[error("{0}")]
    Other(String),
    #[error("the API server did not answer in time")]
    Timeout,
}

impl Failure {
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Failure::Api(status) if status.is_forbidden())
    }

    /// The request was understood and is not wanted: the same again gets the same answer.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Failure::Api(status) if (400..500).contains(&status.code) && !matches!(status.code, 408 | 409 | 429))
    }
}

fn words(status: &Status) -> String {
    match (status.message.is_empty(), status.reason.is_empty()) {
        (false, _) => status.message.clone(),
        (true, false) => format!("{} ({})", status.reason, status.code),
        (true, true) => format!("HTTP status {}", status.code),
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            return Failure::Api(status);
        }
        // The outer words are those of the client's layers; the cause is at the end.
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let words = error.to_string();
            if !text.contains(&words) {
                text = format!("{text}: {words}");
            }
            source = error.source();
        }
        Failure::Other(text)
    }
}

pub(crate) async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    within(TIMEOUT, request).await
}

pub(crate) async fn within<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, request).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::Timeout),
    }
}
