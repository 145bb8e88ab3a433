//! The connection to the decider, and what to say when there is none.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use clap::parser::ValueSource;
use infer_proto::v1::decisions_client::DecisionsClient;
use infer_proto::v1::{ListTargetsRequest, Target};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::failure::Failure;

/// Where the decider is said to be, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    url: String,
    source: &'static str,
}

impl Address {
    /// An address as it was given; `http://` may be left out.
    pub(crate) fn new(given: &str, source: Option<ValueSource>) -> Self {
        let url = if given.contains("://") {
            given.to_owned()
        } else {
            format!("http://{given}")
        };
        let source = match source {
            Some(ValueSource::CommandLine) => "from --server",
            Some(ValueSource::EnvVariable) => "from INFERCTL_SERVER",
            _ => "the default",
        };
        Address { url, source }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// A connection to the decider.
pub(crate) struct Client {
    address: Address,
    timeout: Duration,
    decisions: DecisionsClient<Channel>,
}

/// An explanation carries a whole record with its windows; tonic's own limit of 4 MiB is meant for servers.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;

impl Client {
    pub(crate) async fn connect(address: Address, timeout: Duration) -> Result<Self, Failure> {
        let not_an_address = |why: &str| {
            let Address { url, source } = &address;
            Failure::Usage(format!(
                "{url} ({source}) is not an address of a decider: {why}; write for example http://127.0.0.1:9400"
            ))
        };
        let endpoint =
            Endpoint::from_shared(address.url.clone()).map_err(|error| not_an_address(&root_cause(&error)))?;
        match endpoint.uri().scheme_str() {
            Some("http") => {}
            scheme => {
                return Err(not_an_address(&format!(
                    "{} is not spoken here",
                    scheme.unwrap_or("that protocol")
                )));
            }
        }
        let connected = tokio::time::timeout(timeout, endpoint.connect()).await;
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(unreachable(&address, &root_cause(&error))),
            Err(_) => return Err(unreachable(&address, &format!("no answer within {timeout:?}"))),
        };
        let decisions = DecisionsClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        Ok(Client {
            address,
            timeout,
            decisions,
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Makes a call and waits for its answer, or for the beginning of its stream.
    pub(crate) async fn call<T, F>(&mut self, call: impl FnOnce(DecisionsClient<Channel>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match tokio::time::timeout(self.timeout, call(self.decisions.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_) => Err(Failure::Work(format!(
                "the decider at {} did not answer within {:?}; wait longer with --timeout",
                self.address.url, self.timeout
            ))),
        }
    }

    /// A call that failed, or a stream that broke.
    pub(crate) fn refused(&self, status: &Status) -> Failure {
        let url = &self.address.url;
        let message = match status.message() {
            "" => format!("{:?}", status.code()),
            message => message.to_owned(),
        };
        Failure::Work(match status.code() {
            Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => message,
            Code::Unimplemented => format!(
                "what listens at {url} does not answer this question: it is no infer-decider, or one of another version ({message})"
            ),
            _ => format!("the decider at {url} failed: {}", root_cause_or(status, message)),
        })
    }

    /// Every target, by name.
    pub(crate) async fn targets(&mut self) -> Result<Vec<Target>, Failure> {
        let list = self
            .call(|mut client| async move { client.list_targets(ListTargetsRequest {}).await })
            .await?;
        let mut targets = list.targets;
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(targets)
    }
}

fn unreachable(address: &Address, why: &str) -> Failure {
    let Address { url, source } = address;
    Failure::Work(format!(
        "cannot reach the decider at {url} ({source}): {why}\n\
         infer-decider must be running and serving there. Start it, or point elsewhere with --server ADDRESS or INFERCTL_SERVER=ADDRESS."
    ))
}

/// The innermost error says what happened; those around it only that something did.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn root_cause_or(status: &Status, message: String) -> String {
    match status.source() {
        Some(source) => root_cause(source),
        None => message,
    }
}
