//! Names of Services for Pods of a real node: `NAME.NAMESPACE.svc.cluster.local`, nothing else.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{net::UdpSocket, task::AbortHandle};

use super::{Api, Error};

const PORT: u16 = 53;
const DOMAIN: [&str; 3] = ["svc", "cluster", "local"];
const HEADER: usize = 12;
/// Longer questions than this are none of a Pod's.
const MESSAGE_BYTES_MAX: usize = 512;
const A: u16 = 1;
const IN: u16 = 1;
/// "This is an answer, by one who knows; recursion is as good as done."
const FLAGS: u16 = 0x8580;
const NO_SUCH_NAME: u16 = 3;
const TTL_S: u32 = 5;

/// Answers until it is dropped.
#[derive(Debug)]
pub(super) struct Dns {
    task: AbortHandle,
}

/// What a Pod asks.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    /// In lower case.
    labels: Vec<String>,
    kind: u16,
    /// Where the question ends in the message.
    end: usize,
}

impl Dns {
    pub(super) async fn serve(host: Ipv4Addr, api: Api) -> Result<Self, Error> {
        let address = SocketAddr::from((host, PORT));
        let failed = |error: std::io::Error| Error::Node(format!("DNS at {address}: {error}"));
        let socket = UdpSocket::bind(address).await.map_err(failed)?;
        let task = tokio::spawn(async move {
            let mut buffer = [0; MESSAGE_BYTES_MAX];
            // One after the other: a Pod that gets no answer asks again.
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let message = &buffer[..length];
                let Some(question) = read(message) else { continue };
                let address = look_up(&api, &question.labels).await;
                let _ = socket.send_to(&answer(message, &question, address), from).await;
            }
        });
        Ok(Dns {
            task: task.abort_handle(),
        })
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_up(api: &Api, labels: &[String]) -> Option<Ipv4Addr> {
    let [name, namespace, domain @ ..] = labels else {
        return None;
    };
    if !domain.iter().map(String::as_str).eq(DOMAIN) {
        return None;
    }
    let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
    let service = api.get(&path).await.ok()?;
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

/// The first question of a message.
fn read(message: &[u8]) -> Option<Question> {
    let mut at = HEADER;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // A pointer (two high bits) has no place in a question.
        let label = (length < 64).then(|| message.get(at..at + length)).flatten()?;
        // What is no name of a Service finds none.
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += length;
    }
    let kind = message.get(at..at + 2)?;
    message.get(at..at + 4)?;
    Some(Question {
        labels,
        kind: u16::from_be_bytes([kind[0], kind[1]]),
        end: at + 4,
    })
}

fn answer(message: &[u8], question: &Question, address: Option<Ipv4Addr>) -> Vec<u8> {
    let known = address.is_some();
    let address = address.filter(|_| question.kind == A);
    let mut bytes = Vec::with_capacity(question.end + 16);
    let mut number = |value: u16| bytes.extend(value.to_be_bytes());
    number(u16::from_be_bytes([message[0], message[1]]));
    number(FLAGS | if known { 0 } else { NO_SUCH_NAME });
    // One question, perhaps an answer, nothing more.
    number(1);
    number(u16::from(address.is_some()));
    number(0);
    number(0);
    bytes.extend(&message[HEADER..question.end]);
    if let Some(address) = address {
        // The name: as it stands at the beginning of the question.
        bytes.extend([0xc0, HEADER as u8]);
        bytes.extend(A.to_be_bytes());
        bytes.extend(IN.to_be_bytes());
        bytes.extend(TTL_S.to_be_bytes());
        bytes.extend(4u16.to_be_bytes());
        bytes.extend(address.octets());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for x.ns.svc of this kind.
    fn question(kind: u8) -> Vec<u8> {
        let mut bytes = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x01X\x02ns\x03svc\x00");
        bytes.extend([0, kind, 0, 1]);
        bytes
    }

    #[test]
    fn questions_are_read_and_answered() {
        let message = question(1);
        let read_as = read(&message).unwrap();
        assert_eq!((read_as.labels.join("."), read_as.kind), ("x.ns.svc".to_owned(), A));
        let found = answer(&message, &read_as, Some(Ipv4Addr::new(10, 1, 2, 3)));
        assert_eq!(&found[..8], [7, 9, 0x85, 0x80, 0, 1, 0, 1]);
        assert!(found.ends_with(&[0, 4, 10, 1, 2, 3]));
        let unknown = answer(&message, &read_as, None);
        assert_eq!(&unknown[2..8], [0x85, 0x83, 0, 1, 0, 0]);
        // There is such a name, only not as an address of version 6.
        let message = question(28);
        let six = answer(&message, &read(&message).unwrap(), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(&six[2..8], [0x85, 0x80, 0, 1, 0, 0]);
    }

    #[test]
    fn what_is_cut_short_is_no_question() {
        let message = question(1);
        assert!((0..message.len()).all(|length| read(&message[..length]).is_none()));
        assert!(read(&[0xff; 40]).is_none());
    }
}
