//! What a Service does for the agents: one address in front of every decider.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// Forwards connections to whichever backend takes them, beginning with a random one. Ends when it is dropped.
pub(crate) struct Service {
    pub(crate) url: String,
    task: AbortHandle,
}

impl Service {
    /// In front of these, which need not be there yet.
    pub(crate) async fn start(backends: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        // The certificates hold for the address, whatever the port.
        let url = format!("https://{}", listener.local_addr()?);
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut order = backends.clone();
                fastrand::shuffle(&mut order);
                tokio::spawn(async move {
                    for backend in order {
                        if let Ok(mut server) = TcpStream::connect(backend).await {
                            let _ = (client.set_nodelay(true), server.set_nodelay(true));
                            // Ends with either side; that is no event.
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                            return;
                        }
                    }
                });
            }
        });
        Ok(Service {
            url,
            task: task.abort_handle(),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}
