//! A Service without a kube-proxy: one address before several servers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use super::Error;

/// Hands every connection to the next server that takes it. Connections that are open stay where they are, also when the
/// front is dropped.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    behind: Arc<Mutex<Vec<SocketAddr>>>,
    task: AbortHandle,
}

impl Front {
    /// Listens on a free port; nobody is behind it yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn listen() -> Result<Self, Error> {
        let failed = || Error::io("listen on", Path::new("127.0.0.1"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let behind = Arc::new(Mutex::new(Vec::new()));
        let (known, turn) = (Arc::clone(&behind), AtomicUsize::default());
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut behind: Vec<_> = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if !behind.is_empty() {
                    let first = turn.fetch_add(1, Ordering::Relaxed) % behind.len();
                    behind.rotate_left(first);
                }
                tokio::spawn(async move {
                    for address in behind {
                        if let Ok(mut server) = TcpStream::connect(address).await {
                            // Whichever side breaks it off: that is for the other one to see.
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                            return;
                        }
                    }
                });
            }
        });
        Ok(Front {
            address,
            behind,
            task: task.abort_handle(),
        })
    }

    /// These and no others are behind it.
    pub fn set(&self, addresses: Vec<SocketAddr>) {
        *self.behind.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// One more behind it.
    pub fn add(&self, address: SocketAddr) {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner).push(address);
    }

    /// Its own address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}
