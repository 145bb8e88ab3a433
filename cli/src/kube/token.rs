//! A token that says who asks: of a service account, or the kubeconfig's own.

use serde_json::{Value, json};
use tokio::process::Command;

use super::Kube;
use crate::args::ServiceAccount;
use crate::credentials::Token;
use crate::failure::Failure;

/// Such a token is of no use to anybody but the decider.
const AUDIENCE: &str = "infer-decider";
/// The shortest that an API server makes. Calls that are under way outlive it.
const LIFETIME: &str = "10m";

/// What a kubeconfig has to tell who somebody is.
#[derive(Debug, PartialEq)]
enum Own {
    Token(String),
    File(String),
    /// A program that prints a token.
    Program(Value),
    None,
}

impl Kube {
    pub(super) async fn token(&self) -> Result<Token, Failure> {
        if let Some(ServiceAccount { namespace, name }) = &self.args.service_account {
            let args = [
                "-n",
                namespace,
                "create",
                "token",
                name,
                "--audience",
                AUDIENCE,
                "--duration",
                LIFETIME,
            ];
            let token = self.kubectl(&args).await?;
            return Token::new(&token, format!("service account {namespace}/{name}"));
        }
        let config = self
            .json(&["config", "view", "--minify", "--raw", "-o", "json"])
            .await?;
        let context = config
            .get("current-context")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let source = format!("the kubeconfig's context {context}");
        match own(&config) {
            Own::Token(token) => Token::new(&token, source),
            Own::File(file) => Token::given(Some(file.as_ref()))?.ok_or_else(|| no_token(&source)),
            Own::Program(exec) => {
                let credential = self.credential(&exec).await?;
                let token = credential.pointer("/status/token").and_then(Value::as_str);
                Token::new(token.ok_or_else(|| no_token(&source))?, source)
            }
            Own::None => Err(no_token(&source)),
        }
    }

    /// Runs a kubeconfig's credential plugin as kubectl does.
    async fn credential(&self, exec: &Value) -> Result<Value, Failure> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |key: &str| exec.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let program = exec.get("command").map(text).unwrap_or_default();
        let args: Vec<String> = list("args").iter().map(text).collect();
        let info = json!({
            "apiVersion": exec.get("apiVersion"),
            "kind": "ExecCredential",
            "spec": {"interactive": false},
        });
        let mut command = Command::new(&program);
        command.args(&args).env("KUBERNETES_EXEC_INFO", info.to_string());
        for variable in list("env") {
            if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
                command.env(text(name), text(value));
            }
        }
        let words = format!("the kubeconfig's {program} {}", args.join(" "));
        let printed = self.run(command, words.trim_end()).await?;
        serde_json::from_str(&printed)
            .map_err(|_| Failure::Work(format!("{words}: what it printed is not an ExecCredential")))
    }
}

fn no_token(source: &str) -> Failure {
    Failure::Usage(format!(
        "there is no token in {source}, as with client certificates; ask as a service account that may get \
         autoscalingpolicybindings: --service-account NAMESPACE/NAME"
    ))
}

fn own(config: &Value) -> Own {
    let Some(user) = config.pointer("/users/0/user") else {
        return Own::None;
    };
    let text = |key: &str| user.get(key)?.as_str().filter(|text| !text.is_empty());
    match (text("tokenFile"), text("token"), user.get("exec")) {
        // As client-go: the file is newer.
        (Some(file), ..) => Own::File(file.to_owned()),
        (None, Some(token), _) => Own::Token(token.to_owned()),
        (None, None, Some(exec)) if !exec.is_null() => Own::Program(exec.clone()),
        _ => Own::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_has_its_token_in_one_of_three_places() {
        let of = |user: Value| own(&json!({"users": [{"name": "me", "user": user}]}));
        assert_eq!(of(json!({"token": "t"})), Own::Token("t".to_owned()));
        assert_eq!(
            of(json!({"token": "t", "tokenFile": "/run/t"})),
            Own::File("/run/t".to_owned())
        );
        let exec = json!({"command": "login"});
        assert_eq!(of(json!({"exec": exec})), Own::Program(exec));
        assert_eq!(of(json!({"client-certificate-data": "…"})), Own::None);
        assert_eq!(own(&json!({"users": null})), Own::None);
    }
}
