//! One port, two servers. Raft's calls are served on Raft's runtime and everybody else's on the caller's, so that
//! nothing that keeps the latter busy delays a heartbeat.
//!
//! ```text
//!                            ┌─ GREETING ──► peers     (served on Raft's runtime)
//! port ─► first byte of each ┤
//!         (Raft's runtime)   └─ another ───► callers   (served on the runtime that takes them)
//! ```
//!
//! A connection of Raft's begins with one byte that no HTTP and no TLS begins with. A port of its own would be
//! another address in every node's `--peers`; and what tells Raft's calls apart within HTTP/2 is read too late, by
//! a task that is on one of the runtimes already.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// What a connection for Raft's calls begins with. HTTP begins with a capital letter, TLS with 0x16.
pub(crate) const GREETING: u8 = 0x01;

/// The longest that a connection may say nothing. Every client of ours speaks first, at once.
const FIRST_BYTE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Connections that may be waited for. More than this are no clients of ours, and newer ones are closed.
const UNSORTED_MAX: usize = 1024;

/// Connections that a server may leave waiting: as many as Linux lets wait for one that does not accept.
const WAITING_MAX: usize = 1024;

/// Out of file descriptors, accepting fails at once, again and again.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// A connection that can be looked into.
pub(crate) trait Connection:
    AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static
{
    /// Its first byte, which stays to be read; none where it ended.
    fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>>;

    /// The same, driven by the runtime that this is called on.
    fn driven_here(self) -> io::Result<Self>
    where
        Self: Sized;
}

/// Where the connections of one kind come out.
pub(crate) type Sorted<C> = ReceiverStream<io::Result<C>>;

/// Sorts connections by their first byte.
#[derive(Debug)]
pub(crate) struct Entrance<C> {
    peers: mpsc::Sender<io::Result<C>>,
    callers: mpsc::Sender<io::Result<C>>,
}

// === impl Connection ===

impl Connection for TcpStream {
    fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        ready!(self.poll_peek(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().first().copied()))
    }

    fn driven_here(self) -> io::Result<Self> {
        Self::from_std(self.into_std()?)
    }
}

// === impl Entrance ===

impl<C> Entrance<C>
where
    C: Connection,
{
    /// The entrance, and where Raft's connections and those of everybody else come out.
    pub(crate) fn new() -> (Self, Sorted<C>, Sorted<C>) {
        let (peers, sorted_peers) = mpsc::channel(WAITING_MAX);
        let (callers, sorted_callers) = mpsc::channel(WAITING_MAX);
        let entrance = Self { peers, callers };
        (entrance, ReceiverStream::new(sorted_peers), ReceiverStream::new(sorted_callers))
    }

    /// Sorts what comes in for as long as it does.
    pub(crate) async fn run<I>(self, incoming: I)
    where
        I: Stream<Item = io::Result<C>>,
    {
        let mut incoming = pin!(incoming);
        let mut unsorted = JoinSet::new();
        while let Some(accepted) = incoming.next().await {
            while unsorted.try_join_next().is_some() {}
            match accepted {
                Ok(connection) if unsorted.len() < UNSORTED_MAX => {
                    let (peers, callers) = (self.peers.clone(), self.callers.clone());
                    unsorted.spawn(sort(connection, peers, callers));
                }
                Ok(_one_too_many) => tracing::warn!("{UNSORTED_MAX} connections say nothing"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    }
}

async fn sort<C>(
    mut connection: C,
    peers: mpsc::Sender<io::Result<C>>,
    callers: mpsc::Sender<io::Result<C>>,
) where
    C: Connection,
{
    let first = poll_fn(|context| connection.poll_first(context));
    let server = match timeout(FIRST_BYTE_WAIT_MAX, first).await {
        Ok(Ok(Some(GREETING))) if connection.read_u8().await.is_ok() => peers,
        Ok(Ok(Some(byte))) if byte != GREETING => callers,
        // It broke, ended or stays silent: a probe of the port does.
        Ok(_) | Err(_) => return,
    };
    if server.try_send(Ok(connection)).is_err() {
        tracing::debug!("closed a connection that nobody takes");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;

    /// What comes out for a client that sends `bytes`: at whose server, and what that reads.
    async fn sorted(bytes: &[u8]) -> (&'static str, Vec<u8>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entrance, mut peers, mut callers) = Entrance::new();
        let sorting = tokio::spawn(entrance.run(TcpListenerStream::new(listener)));
        // One that says nothing and one that ends hold up nobody.
        let _silent = TcpStream::connect(address).await.unwrap();
        drop(TcpStream::connect(address).await.unwrap());

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let (server, connection) = tokio::select! {
            Some(connection) = peers.next() => ("peers", connection),
            Some(connection) = callers.next() => ("callers", connection),
        };
        let mut read = Vec::new();
        connection.unwrap().driven_here().unwrap().read_to_end(&mut read).await.unwrap();
        sorting.abort();
        (server, read)
    }

    #[tokio::test]
    async fn a_connection_that_begins_with_the_greeting_is_raft_s_and_the_rest_is_not() {
        assert_eq!(sorted(&[GREETING, b'P', b'R']).await, ("peers", b"PR".to_vec()));
        assert_eq!(sorted(b"PRI * HTTP/2.0").await, ("callers", b"PRI * HTTP/2.0".to_vec()));
        assert_eq!(sorted(&[0x16, GREETING]).await, ("callers", vec![0x16, GREETING]));
    }
}
