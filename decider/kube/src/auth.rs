//! Who is speaking: agents by the token of their Pod, people by theirs and by what they may do.
//!
//! The API server is asked (TokenReview, SubjectAccessReview), and what it said holds for a few seconds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::failure::Failure;

/// Audience of agents' tokens.
pub const AUDIENCE: &str = "infer-decider";

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// The longest token there can be: those of the API server have a few KiB, and headers end at 16 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Who an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its Pod's namespace.
    pub namespace: String,
    /// Its Pod's name.
    pub pod: String,
    /// Its Pod's uid.
    pub uid: String,
    /// Its Pod's service account.
    pub service_account: String,
}

/// What a person wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Ask: `get` on AutoscalingPolicyBindings.
    Read,
    /// Pause, resume, override: `update` on AutoscalingPolicyBindings.
    Write,
}

impl Access {
    fn verb(self) -> &'static str {
        match self {
            Access::Read => "get",
            Access::Write => "update",
        }
    }
}

/// Why somebody was turned away. No message contains the token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The token is not good.
    #[error("the token was not accepted: {0}")]
    Unauthenticated(String),
    /// The token is good, and its bearer may not.
    #[error("{0}")]
    Denied(String),
    /// That cannot be found out now.
    #[error("the API server cannot say now whether the token is good: {0}")]
    Unavailable(String),
}

/// How many questions, and for how long answers hold.
#[derive(Debug, Clone)]
pub struct Options {
    /// Audience that agents' tokens must have; people's may.
    pub audience: String,
    /// Questions under way at a time.
    pub concurrency: usize,
    /// In all, waiting for one's turn included.
    pub timeout: Duration,
    /// For how long a yes holds: so long a token outlives its Pod or its rights.
    pub yes_for: Duration,
    /// For how long a no holds.
    pub no_for: Duration,
    /// Answers kept, each about 300 bytes.
    pub answers_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            audience: AUDIENCE.to_owned(),
            concurrency: 32,
            timeout: Duration::from_secs(5),
            yes_for: Duration::from_secs(30),
            no_for: Duration::from_secs(5),
            // 10,000 agents that all come back at once, and as much again.
            answers_max: 20_000,
        }
    }
}

/// Asks the API server about tokens. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    client: Client,
    options: Options,
    turn: Semaphore,
    answers: Mutex<Answers>,
}

/// A digest, so that no token stays in memory.
type Digested = [u8; 32];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    token: Digested,
    about: About,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum About {
    Agent,
    User,
    May(Access, String),
}

#[derive(Debug, Clone)]
enum Answer {
    Agent(Result<Agent, Error>),
    User(Result<Box<UserInfo>, Error>),
    May(Result<(), Error>),
}

impl Answer {
    fn is_yes(&self) -> bool {
        matches!(self, Answer::Agent(Ok(_)) | Answer::User(Ok(_)) | Answer::May(Ok(())))
    }

    /// What was not found out is no answer.
    fn holds(&self) -> bool {
        let unavailable = |error: &Error| matches!(error, Error::Unavailable(_));
        match self {
            Answer::Agent(Err(error)) | Answer::User(Err(error)) | Answer::May(Err(error)) => !unavailable(error),
            _ => true,
        }
    }
}

#[derive(Default)]
struct Answers {
    by_question: HashMap<Question, (Answer, Instant)>,
}

impl Answers {
    fn get(&self, question: &Question, now: Instant) -> Option<Answer> {
        let (answer, until) = self.by_question.get(question)?;
        (now < *until).then(|| answer.clone())
    }

    fn put(&mut self, question: Question, answer: Answer, until: Instant, now: Instant, most: usize) {
        if self.by_question.len() >= most {
            self.by_question.retain(|_, (_, until)| now < *until);
        }
        // Full of answers that hold: somebody is trying tokens, or there are more agents than were thought of. Then
        // the API server is asked each time, at its own pace.
        if self.by_question.len() < most {
            self.by_question.insert(question, (answer, until));
        }
    }
}

impl Authenticator {
    /// Asks through `client`.
    pub fn new(client: Client, options: Options) -> Self {
        Authenticator(Arc::new(Inner {
            turn: Semaphore::new(options.concurrency.max(1)),
            client,
            options,
            answers: Mutex::default(),
        }))
    }

    /// Which Pod the bearer of `token` speaks for.
    ///
    /// # Errors
    /// See [`Error`]; a good token that is not bound to a Pod is [`Error::Denied`].
    pub async fn agent(&self, token: &str) -> Result<Agent, Error> {
        let question = Question {
            token: digest(token),
            about: About::Agent,
        };
        let answer = self.answer(question, self.ask_agent(token)).await;
        match answer {
            Answer::Agent(result) => result,
            _ => Err(mixed_up()),
        }
    }

    /// Name of the person that bears `token`, who may do that with the bindings of `namespace` (empty: of all).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn person(&self, token: &str, access: Access, namespace: &str) -> Result<String, Error> {
        let token_digest = digest(token);
        let question = Question {
            token: token_digest,
            about: About::User,
        };
        let user = match self.answer(question, self.ask_user(token)).await {
            Answer::User(result) => result?,
            _ => return Err(mixed_up()),
        };
        let name = user.username.clone().unwrap_or_default();
        let question = Question {
            token: token_digest,
            about: About::May(access, namespace.to_owned()),
        };
        match self.answer(question, self.ask_may(*user, access, namespace)).await {
            Answer::May(result) => result.map(|()| name),
            _ => Err(mixed_up()),
        }
    }

    async fn answer(&self, question: Question, ask: impl Future<Output = Answer>) -> Answer {
        let inner = &self.0;
        if let Some(answer) = inner.lock().get(&question, Instant::now()) {
            return answer;
        }
        let answer = ask.await;
        if answer.holds() {
            let now = Instant::now();
            let options = &inner.options;
            let hold = if answer.is_yes() {
                options.yes_for
            } else {
                options.no_for
            };
            inner
                .lock()
                .put(question, answer.clone(), now + hold, now, options.answers_max);
        }
        answer
    }

    async fn ask_agent(&self, token: &str) -> Answer {
        let audience = self.0.options.audience.clone();
        Answer::Agent(match self.review(token, Some(audience)).await {
            Ok(user) => agent_of(&user),
            Err(error) => Err(error),
        })
    }

    /// A token for us first, then one for the API server.
    async fn ask_user(&self, token: &str) -> Answer {
        let audience = self.0.options.audience.clone();
        let user = match self.review(token, Some(audience)).await {
            Err(Error::Unauthenticated(_)) => self.review(token, None).await,
            result => result,
        };
        Answer::User(user.map(Box::new))
    }

    async fn ask_may(&self, user: UserInfo, access: Access, namespace: &str) -> Answer {
        let name = user.username.clone().unwrap_or_default();
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                uid: user.uid,
                groups: user.groups,
                extra: user.extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some(crate::GROUP.to_owned()),
                    resource: Some(crate::BINDINGS.to_owned()),
                    verb: Some(access.verb().to_owned()),
                    namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.0.client.clone());
        let answer = self
            .in_turn(async { api.create(&PostParams::default(), &review).await })
            .await;
        Answer::May(answer.and_then(|review| {
            let status = review.status.unwrap_or_default();
            if status.allowed && !status.denied.unwrap_or_default() {
                return Ok(());
            }
            let scope = match namespace {
                "" => "all namespaces".to_owned(),
                namespace => format!("namespace {namespace}"),
            };
            Err(Error::Denied(format!(
                "{name} may not {} {}.{} in {scope}",
                access.verb(),
                crate::BINDINGS,
                crate::GROUP
            )))
        }))
    }

    async fn review(&self, token: &str, audience: Option<String>) -> Result<UserInfo, Error> {
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            let problem = if token.is_empty() {
                "it is empty"
            } else {
                "it is too long"
            };
            return Err(Error::Unauthenticated(problem.to_owned()));
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: audience.clone().map(|audience| vec![audience]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.0.client.clone());
        let answer = self
            .in_turn(async { api.create(&PostParams::default(), &review).await })
            .await?;
        let status = answer.status.unwrap_or_default();
        if !status.authenticated.unwrap_or_default() {
            let why = status
                .error
                .unwrap_or_else(|| "it is not known or has expired".to_owned());
            return Err(Error::Unauthenticated(why));
        }
        // An API server that knows no audiences says nothing of them: then the token is for the API server itself.
        let audiences = status.audiences.unwrap_or_default();
        if let Some(audience) = audience.filter(|audience| !audiences.contains(audience)) {
            return Err(Error::Unauthenticated(format!("it is not for the audience {audience}")));
        }
        status
            .user
            .ok_or_else(|| Error::Unauthenticated("it names nobody".to_owned()))
    }

    async fn in_turn<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        let deadline = Instant::now() + self.0.options.timeout;
        let unavailable = |why: &str| Error::Unavailable(why.to_owned());
        let turn = timeout_at(deadline, self.0.turn.acquire()).await;
        let _turn = match turn {
            Ok(Ok(turn)) => turn,
            _ => return Err(unavailable("too many ask at once")),
        };
        match timeout_at(deadline, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unavailable(&Failure::from(error).to_string())),
            Err(_) => Err(unavailable("no answer in time")),
        }
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(token: &str) -> Digested {
    Sha256::digest(token.as_bytes()).into()
}

/// Cannot happen: a question has one kind of answer.
fn mixed_up() -> Error {
    Error::Unavailable("the answer is to another question".to_owned())
}

fn agent_of(user: &UserInfo) -> Result<Agent, Error> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(key)?;
        match values.as_slice() {
            [value] if !value.is_empty() => Some(value.clone()),
            _ => None,
        }
    };
    match (account, extra(POD_NAME), extra(POD_UID)) {
        (Some((namespace, service_account)), Some(pod), Some(uid)) => Ok(Agent {
            namespace: namespace.to_owned(),
            pod,
            uid,
            service_account: service_account.to_owned(),
        }),
        (None, ..) => Err(Error::Denied(format!("{name} is no service account"))),
        _ => Err(Error::Denied(format!(
            "the token of {name} is not bound to a Pod; agents need a projected token"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn user(name: &str, extra: &[(&str, &[&str])]) -> UserInfo {
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        UserInfo {
            username: Some(name.to_owned()),
            extra: Some(
                extra
                    .iter()
                    .map(|(key, list)| ((*key).to_owned(), values(list)))
                    .collect::<BTreeMap<_, _>>(),
            ),
            ..UserInfo::default()
        }
    }

    #[test]
    fn an_agent_is_the_pod_its_token_is_bound_to() {
        let bound: &[(&str, &[&str])] = &[(POD_NAME, &["chat-0"]), (POD_UID, &["u1"])];
        let agent = agent_of(&user("system:serviceaccount:ml:default", bound)).unwrap();
        let expected = Agent {
            namespace: "ml".to_owned(),
            pod: "chat-0".to_owned(),
            uid: "u1".to_owned(),
            service_account: "default".to_owned(),
        };
        assert_eq!(agent, expected);
    }

    #[test]
    fn whoever_is_not_bound_to_one_pod_is_no_agent() {
        type Extra<'a> = &'a [(&'a str, &'a [&'a str])];
        let cases: [(&str, Extra<'_>); 6] = [
            ("system:serviceaccount:ml:default", &[]),
            ("system:serviceaccount:ml:default", &[(POD_NAME, &["chat-0"])]),
            ("system:serviceaccount:ml:default", &[(POD_UID, &["u1"])]),
            (
                "system:serviceaccount:ml:default",
                &[(POD_NAME, &["chat-0", "chat-1"]), (POD_UID, &["u1"])],
            ),
            (
                "system:serviceaccount:ml",
                &[(POD_NAME, &["chat-0"]), (POD_UID, &["u1"])],
            ),
            ("admin", &[(POD_NAME, &["chat-0"]), (POD_UID, &["u1"])]),
        ];
        for (name, extra) in cases {
            assert!(
                matches!(agent_of(&user(name, extra)), Err(Error::Denied(_))),
                "{name} {extra:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_bounded_and_end() {
        let mut answers = Answers::default();
        let question = |n: u8| Question {
            token: [n; 32],
            about: About::Agent,
        };
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for n in 0..3 {
            answers.put(question(n), Answer::May(Ok(())), now + second, now, 2);
        }
        assert!(answers.get(&question(1), now).is_some());
        assert!(answers.get(&question(2), now).is_none(), "full");
        assert!(answers.get(&question(1), now + second).is_none(), "over");
        answers.put(question(2), Answer::May(Ok(())), now + 3 * second, now + 2 * second, 2);
        assert!(
            answers.get(&question(2), now + 2 * second).is_some(),
            "old ones give way"
        );
        assert_eq!(answers.by_question.len(), 1);
    }
}
