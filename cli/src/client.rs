//! The connection to the decider, and what to say when there is none.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use clap::parser::ValueSource;
use infer_proto::v1::decisions_client::DecisionsClient;
use infer_proto::v1::{ListTargetsRequest, Target};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::credentials::{Bearer, Credentials, WHERE_THE_CA_IS};
use crate::failure::Failure;
use crate::kube::{Forward, Kube};

/// Where the decider is said to be, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    url: String,
    source: &'static str,
    /// What people know it as, where that is not the URL.
    known_as: Option<String>,
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
        Address {
            url,
            source,
            known_as: None,
        }
    }

    /// For people to read.
    pub(crate) fn url(&self) -> &str {
        self.known_as.as_deref().unwrap_or(&self.url)
    }
}

/// The generated client, with a token in each request.
pub(crate) type Decisions = DecisionsClient<InterceptedService<Channel, Bearer>>;

/// A connection to the decider.
pub(crate) struct Client {
    address: Address,
    timeout: Duration,
    credentials: Credentials,
    decisions: Decisions,
    kube: Option<(Kube, Forward)>,
    /// Another decider has been asked instead; once is enough.
    sent_on: bool,
}

/// An explanation carries a whole record with its windows; tonic's own limit of 4 MiB is meant for servers.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;
/// How a decider ends its sentence about a target of another one; an address follows.
const ASK: &str = ": ask ";

impl Client {
    pub(crate) async fn connect(
        address: Address,
        credentials: Credentials,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let decisions = open(&address, &credentials, timeout).await?;
        Ok(Client {
            address,
            timeout,
            credentials,
            decisions,
            kube: None,
            sent_on: false,
        })
    }

    /// To a decider in a cluster. `lists` where the answer is about everything that one decider has.
    pub(crate) async fn in_cluster(
        kube: Kube,
        given: Credentials,
        timeout: Duration,
        lists: bool,
    ) -> Result<Self, Failure> {
        let credentials = kube.credentials(given).await?;
        let (forward, known_as) = kube.forward(None, lists).await?;
        let address = forwarded(&forward, known_as);
        match open(&address, &credentials, timeout).await {
            Ok(decisions) => Ok(Client {
                address,
                timeout,
                credentials,
                decisions,
                kube: Some((kube, forward)),
                sent_on: false,
            }),
            Err(failure) => {
                let failure = explained(failure, &forward);
                forward.end().await;
                Err(failure)
            }
        }
    }

    /// Ends what the connection needed.
    pub(crate) async fn close(self) {
        if let Some((_, forward)) = self.kube {
            forward.end().await;
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Makes a call and waits for its answer, or for the beginning of its stream. A decider that knows who should be asked
    /// instead is believed once.
    pub(crate) async fn call<R, T, F>(&mut self, request: R, call: impl Fn(Decisions, R) -> F) -> Result<T, Failure>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut answer = self.in_time(call(self.decisions.clone(), request.clone())).await?;
        if let Err(status) = &answer
            && let Some(endpoint) = elsewhere(status).filter(|_| !self.sent_on)
        {
            self.go_on_to(&endpoint, status).await?;
            answer = self.in_time(call(self.decisions.clone(), request)).await?;
        }
        answer.map(Response::into_inner).map_err(|status| self.refused(&status))
    }

    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Result<Response<T>, Status>, Failure> {
        tokio::time::timeout(self.timeout, call).await.map_err(|_| {
            Failure::Work(format!(
                "the decider at {} did not answer within {:?}; wait longer with --timeout",
                self.address.url(),
                self.timeout
            ))
        })
    }

    /// Connects to the decider at `endpoint` instead.
    async fn go_on_to(&mut self, endpoint: &str, status: &Status) -> Result<(), Failure> {
        self.sent_on = true;
        let unreachable = |failure: Failure, advice: &str| {
            let why = failure.message().unwrap_or_default();
            Failure::Work(format!("{}\nFrom here that failed: {why}{advice}", status.message()))
        };
        if let Some((kube, forward)) = &mut self.kube {
            let (next, known_as) = kube
                .forward(Some(endpoint), false)
                .await
                .map_err(|failure| unreachable(failure, ""))?;
            self.address = forwarded(&next, known_as);
            std::mem::replace(forward, next).end().await;
            self.decisions = open(&self.address, &self.credentials, self.timeout)
                .await
                .map_err(|failure| unreachable(explained(failure, forward), ""))?;
            return Ok(());
        }
        let is_secure = |url: &str| url.starts_with("https://");
        let address = Address {
            url: endpoint.to_owned(),
            source: "where the one asked first sent us",
            known_as: None,
        };
        // Never from TLS to where anybody could listen.
        if is_secure(&self.address.url) && !is_secure(endpoint) {
            return Err(self.refused(status));
        }
        let advice = "\nAddresses of Pods are reached in the cluster only: inferctl --kube finds its way.";
        self.decisions = open(&address, &self.credentials, self.timeout)
            .await
            .map_err(|failure| unreachable(failure, advice))?;
        self.address = address;
        Ok(())
    }

    /// A call that failed, or a stream that broke.
    pub(crate) fn refused(&self, status: &Status) -> Failure {
        let url = self.address.url();
        let message = match status.message() {
            "" => format!("{:?}", status.code()),
            message => message.to_owned(),
        };
        Failure::Work(match status.code() {
            Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => message,
            Code::Unauthenticated => match &self.credentials.token {
                None => format!(
                    "the decider at {url} wants to know who asks: {message}\n\
                     Give a token with --token-file FILE or INFERCTL_TOKEN, or let kubectl make one with --kube \
                     --service-account NAMESPACE/NAME."
                ),
                Some(token) => format!(
                    "the decider at {url} does not accept the token of {}: {message}\nTokens end: is it a new one, and of this \
                     cluster?",
                    token.source()
                ),
            },
            Code::PermissionDenied => format!(
                "the decider at {url} refuses: {message}\n\
                 To ask takes `get`, to pause, resume and override `update` of autoscalingpolicybindings in the target's \
                 namespace; in all namespaces where no target is named."
            ),
            Code::Unimplemented => format!(
                "what listens at {url} does not answer this question: it is no infer-decider, or one of another version ({message})"
            ),
            _ => {
                let said = self
                    .kube
                    .as_ref()
                    .map(|(_, forward)| forward.said())
                    .unwrap_or_default();
                let why = root_cause_or(status, message);
                let advice = match self.address.url.starts_with("http://") && is_broken(status) {
                    true => "\nDoes it want https:// (and --ca-file), as one in a cluster does?",
                    false => "",
                };
                let mut text = format!("the decider at {url} failed: {why}{advice}");
                if !said.is_empty() {
                    text.push_str(&format!("\nkubectl port-forward says: {said}"));
                }
                text
            }
        })
    }

    /// Every target, by name.
    pub(crate) async fn targets(&mut self) -> Result<Vec<Target>, Failure> {
        let list = self
            .call(ListTargetsRequest {}, |mut client, request| async move {
                client.list_targets(request).await
            })
            .await?;
        let mut targets = list.targets;
        targets.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(targets)
    }
}

/// Through a port-forward.
fn forwarded(forward: &Forward, known_as: String) -> Address {
    Address {
        url: format!("https://127.0.0.1:{}", forward.port()),
        source: "kubectl port-forward",
        known_as: Some(known_as),
    }
}

/// Opens a connection and waits until it is there.
async fn open(address: &Address, credentials: &Credentials, timeout: Duration) -> Result<Decisions, Failure> {
    let Address { url, source, .. } = address;
    let not_an_address = |why: &str| {
        Failure::Usage(format!(
            "{url} ({source}) is not an address of a decider: {why}; write for example http://127.0.0.1:9400, or \
             https://infer-decider.infer-system.svc:9400"
        ))
    };
    let mut endpoint = Endpoint::from_shared(url.clone()).map_err(|error| not_an_address(&root_cause(&error)))?;
    let host = endpoint.uri().host().unwrap_or_default().to_owned();
    match endpoint.uri().scheme_str() {
        Some("http") => {
            if let Some(token) = credentials.token.as_ref().filter(|_| !is_loopback(&host)) {
                return Err(Failure::Usage(format!(
                    "the token of {} would go to {url} ({source}) for everybody on the way to read: write https://",
                    token.source()
                )));
            }
        }
        Some("https") => {
            let tls = credentials.tls().ok_or_else(|| {
                Failure::Usage(format!(
                    "{url} ({source}) needs to be told from others: give the certificates of the authority that signs the \
                     decider's with --ca-file FILE or INFERCTL_CA_FILE\n{WHERE_THE_CA_IS}"
                ))
            })?;
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|error| Failure::Usage(format!("--tls-server-name: {}", root_cause(&error))))?;
        }
        scheme => {
            return Err(not_an_address(&format!(
                "{} is not spoken here",
                scheme.unwrap_or("that protocol")
            )));
        }
    }
    let channel = match tokio::time::timeout(timeout, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            return Err(match credentials.advice(&error, host.trim_matches(['[', ']'])) {
                Some(advice) => Failure::Work(format!("the decider at {} ({source}): {advice}", address.url())),
                None => unreachable(address, &root_cause(&error)),
            });
        }
        Err(_) => return Err(unreachable(address, &format!("no answer within {timeout:?}"))),
    };
    Ok(DecisionsClient::with_interceptor(channel, credentials.bearer()).max_decoding_message_size(LARGEST_ANSWER))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Where a decider that does not decide on a target says to ask instead.
fn elsewhere(status: &Status) -> Option<String> {
    if status.code() != Code::FailedPrecondition {
        return None;
    }
    let (_, endpoint) = status.message().rsplit_once(ASK)?;
    let is_address = endpoint.starts_with("http://") || endpoint.starts_with("https://");
    (is_address && !endpoint.contains(char::is_whitespace)).then(|| endpoint.to_owned())
}

/// The same failure with what kubectl has said about it.
fn explained(failure: Failure, forward: &Forward) -> Failure {
    match (failure, forward.said()) {
        (Failure::Work(message), said) if !said.is_empty() => {
            Failure::Work(format!("{message}\nkubectl port-forward says: {said}"))
        }
        (failure, _) => failure,
    }
}

/// Nobody is there, or not as expected.
fn unreachable(address: &Address, why: &str) -> Failure {
    let (url, source) = (address.url(), address.source);
    Failure::Work(format!(
        "cannot reach the decider at {url} ({source}): {why}\n\
         infer-decider must be running and serving there. Start it, or point elsewhere with --server ADDRESS or INFERCTL_SERVER=ADDRESS."
    ))
}

/// The connection broke, as it does when one side speaks TLS and the other does not.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal) && status.source().is_some()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decider_says_who_is_to_be_asked_instead() {
        let message = "target \"ml/chat\" is decided on by another decider: ask https://10.0.0.7:9400";
        assert_eq!(
            elsewhere(&Status::failed_precondition(message)).as_deref(),
            Some("https://10.0.0.7:9400")
        );
        for status in [
            Status::not_found(message),
            Status::failed_precondition("not now: ask later"),
            Status::failed_precondition("ask: ask http://a b"),
        ] {
            assert_eq!(elsewhere(&status), None, "{status}");
        }
    }

    #[test]
    fn only_this_machine_is_this_machine() {
        for host in ["127.0.0.1", "localhost", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "127.0.0.1.example.org", "decider"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
