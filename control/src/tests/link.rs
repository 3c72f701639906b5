//! A wire that can be cut: a proxy in front of a node, at a URL that outlives the node's restarts.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The wire into one node. Dropping it cuts it.
pub(super) struct Link {
    pub(super) url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Where the wire leads; nowhere when it is cut.
    target: Mutex<Option<SocketAddr>>,
    connections: Mutex<JoinSet<()>>,
}

impl Link {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::<Shared>::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { url, shared, accepting }
    }

    pub(super) fn lead_to(&self, target: SocketAddr) {
        *self.shared.target.lock() = Some(target);
    }

    /// Breaks every connection; new ones are taken.
    pub(super) fn interrupt(&self) {
        self.shared.connections.lock().abort_all();
    }

    /// Breaks every connection and takes no new one.
    pub(super) fn cut(&self) {
        *self.shared.target.lock() = None;
        self.shared.connections.lock().abort_all();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((mut inner, _from)) = listener.accept().await {
        // A connection that leads nowhere is closed at once.
        let Some(target) = *shared.target.lock() else { continue };
        let mut connections = shared.connections.lock();
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            if let Ok(mut outer) = TcpStream::connect(target).await {
                // Either end may break; both are then closed.
                let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
            }
        });
    }
}
