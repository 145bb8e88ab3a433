//! The decider's address, and a channel to it.

use std::time::Duration;

use http::Uri;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::{Credentials, Error};

/// Packets to a deleted Pod's address vanish without an answer. Includes the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Together at most 15 s until a silent decider is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether this can be a decider's address, with these credentials.
///
/// # Errors
/// [`Error::DeciderUrl`] saying what is wrong with it.
pub(crate) fn check(url: &str, credentials: &Credentials) -> Result<(), Error> {
    let bad = |reason: &str| {
        Err(Error::DeciderUrl {
            url: url.into(),
            reason: reason.into(),
        })
    };
    match url.parse::<Uri>() {
        Err(error) => bad(&error.to_string()),
        Ok(uri) => match uri.scheme_str() {
            Some("http" | "https") if !matches!(uri.path(), "" | "/") || uri.query().is_some() => bad("it has a path"),
            // Not even on loopback: one rule, and who reads a token in passing can be that Pod for an hour.
            Some("http") if credentials.token_file.is_some() => bad("a token goes over https:// only"),
            Some("https") if !credentials.has_ca() => {
                bad("https needs the CA of the decider's certificate, from INFER_AGENT_CA_PEM or --ca-file")
            }
            Some("http" | "https") => Ok(()),
            _ => bad("it does not start with http:// or https://"),
        },
    }
}

/// Whether an agent that was configured for `configured` may follow a redirect to `endpoint`.
///
/// # Errors
/// A sentence saying why not.
pub(crate) fn check_redirect(configured: &str, endpoint: &str, credentials: &Credentials) -> Result<(), String> {
    check(endpoint, credentials).map_err(|error| error.to_string())?;
    let is_secure = |url: &str| url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https"));
    if is_secure(configured) && !is_secure(endpoint) {
        return Err(format!("{endpoint} is without TLS, the configured decider is not"));
    }
    Ok(())
}

/// A connection to `url`, over TLS with https.
///
/// # Errors
/// A sentence for the log.
pub(crate) async fn connect(url: &str, credentials: &Credentials) -> Result<Channel, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
    let mut transport = Endpoint::from(uri.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        // One stream lives on it.
        .buffer_size(4);
    if uri.scheme_str() == Some("https") {
        transport = transport
            .tls_config(credentials.tls()?)
            .map_err(|error| chain(&error))?;
    }
    match timeout(CONNECT_TIMEOUT, transport.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(credentials
            .advice(&error, uri.host().unwrap_or_default())
            .unwrap_or_else(|| chain(&error))),
        Err(_) => Err(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

/// A message and everything under it: of tonic's transport errors only the deepest says what happened.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        // Wrappers like to repeat what they wrap.
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let none = Credentials::default();
        let ca = Credentials {
            ca_file: Some("ca.pem".into()),
            ..Credentials::default()
        };
        let token = Credentials {
            token_file: Some("token".into()),
            ..ca.clone()
        };
        for (url, credentials) in [
            ("http://127.0.0.1:9400", &none),
            ("http://decider.infer.svc:9400/", &ca),
            ("https://decider.infer.svc:9400/", &ca),
            ("https://[::1]:9400", &token),
        ] {
            assert!(check(url, credentials).is_ok(), "{url}");
        }
        for (url, credentials, part) in [
            ("https://decider:9400", &none, "INFER_AGENT_CA_PEM"),
            ("http://127.0.0.1:9400", &token, "over https:// only"),
            ("decider:9400", &none, "does not start with http://"),
            ("http://decider:9400/x", &none, "has a path"),
            ("https://decider:9400/x", &ca, "has a path"),
            ("", &none, "empty"),
        ] {
            let error = check(url, credentials).expect_err(url).to_string();
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
        let (secure, open) = ("https://decider:9400", "http://decider:9400");
        assert!(check_redirect(secure, "https://10.0.0.7:9400", &ca).is_ok());
        assert!(check_redirect(open, "https://10.0.0.7:9400", &ca).is_ok());
        assert!(check_redirect(open, "http://10.0.0.7:9400", &none).is_ok());
        assert!(check_redirect(open, "https://10.0.0.7:9400", &none).is_err());
        assert!(check_redirect(secure, "http://10.0.0.7:9400", &ca).is_err());
    }
}
