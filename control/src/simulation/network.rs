//! A network in memory: connections between hosts that may be slow, lossy, cut one way or both, and that learn
//! of a dead peer as TCP does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

use super::history::History;
use crate::entrance::{Connection, GREETING};
use crate::peers::Line;

/// A machine on the network.
pub(super) type HostId = u64;

/// The first retransmission of a lost segment, and the latest: as TCP's.
const RETRANSMIT_MS_MIN: u64 = 200;
const RETRANSMIT_MS_MAX: u64 = 3200;

/// Bytes under way that make a writer wait.
const WINDOW_BYTES: usize = 1 << 20;

/// Connections waiting to be accepted, as a node's server takes them.
pub(super) type Incoming = UnboundedReceiverStream<io::Result<Stream>>;

/// The network. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Network(Arc<Mutex<Inner>>);

/// How messages travel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) latency_ms: (u64, u64),
    /// The share of segments that are sent twice.
    pub(super) loss: f64,
}

#[derive(Debug)]
struct Inner {
    history: History,
    rng: SmallRng,
    weather: Weather,
    /// From where to where nothing passes.
    cuts: BTreeSet<(HostId, HostId)>,
    /// Hosts without power: they answer nothing, not even with a reset.
    dark: BTreeSet<HostId>,
    listeners: BTreeMap<HostId, mpsc::UnboundedSender<io::Result<Stream>>>,
    connections: BTreeMap<u64, [End; 2]>,
    opened: u64,
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    host: HostId,
    /// On the way here, in order.
    arriving: VecDeque<Segment>,
    inbox: VecDeque<u8>,
    closed: Option<Close>,
    /// Nobody holds this end.
    gone: bool,
    reader: Option<Waker>,
    /// Of the other end, which waits for room here.
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Segment {
    at: u64,
    retransmit: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Data(Vec<u8>),
    Close(Close),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    End,
    Reset,
}

/// One end of a connection, held.
#[derive(Debug)]
pub(super) struct Stream {
    network: Network,
    connection: u64,
    side: usize,
}

// === impl Network ===

impl Network {
    pub(super) fn new(seed: u64, weather: Weather, history: History) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            history,
            rng: SmallRng::seed_from_u64(seed),
            weather,
            cuts: BTreeSet::new(),
            dark: BTreeSet::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            opened: 0,
        })))
    }

    pub(super) fn url(host: HostId) -> String {
        format!("http://h{host}:7000")
    }

    pub(super) fn listen(&self, host: HostId) -> Incoming {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().listeners.insert(host, sender);
        UnboundedReceiverStream::new(receiver)
    }

    /// A channel from `host` that connects when first used.
    pub(super) fn channel(&self, host: HostId, endpoint: &Endpoint, line: Line) -> Channel {
        let network = self.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let network = network.clone();
            async move {
                let to = uri.host().and_then(|name| name.strip_prefix('h')?.parse().ok());
                let to = to.ok_or(io::ErrorKind::AddrNotAvailable)?;
                let mut stream = network.connect(host, to).await?;
                if line == Line::Raft {
                    stream.write_u8(GREETING).await?;
                }
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        }))
    }

    async fn connect(&self, from: HostId, to: HostId) -> io::Result<Stream> {
        let mut retransmit = RETRANSMIT_MS_MIN;
        loop {
            let delay = self.0.lock().latency();
            tokio::time::sleep(Duration::from_millis(delay)).await;
            match self.0.lock().shake_hands(self, from, to) {
                Ok(Some(stream)) => return Ok(stream),
                Ok(None) => {}
                Err(refused) => return Err(refused.into()),
            }
            tokio::time::sleep(Duration::from_millis(retransmit)).await;
            retransmit = (retransmit * 2).min(RETRANSMIT_MS_MAX);
        }
    }

    pub(super) fn cut(&self, from: HostId, to: HostId) {
        self.0.lock().cuts.insert((from, to));
    }

    pub(super) fn heal(&self) {
        self.0.lock().cuts.clear();
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Before a host's processes are dropped, in whatever order tokio does that: with its power gone, nobody
    /// hears of it.
    pub(super) fn stop(&self, host: HostId, power_lost: bool) {
        let mut inner = self.0.lock();
        inner.listeners.remove(&host);
        if power_lost {
            inner.dark.insert(host);
        }
        let held = |end: &End| end.host == host && !end.gone;
        let connections = inner.connections.iter();
        let ends = connections.flat_map(|(id, ends)| [(*id, 0, &ends[0]), (*id, 1, &ends[1])]);
        let ends: Vec<(u64, usize)> =
            ends.filter(|(_id, _side, end)| held(end)).map(|(id, side, _end)| (id, side)).collect();
        for (connection, side) in ends {
            inner.let_go(connection, side);
        }
    }

    pub(super) fn start(&self, host: HostId) {
        self.0.lock().dark.remove(&host);
    }

    /// Delivers what has arrived by now.
    pub(super) fn deliver(&self) {
        let wakers = self.0.lock().deliver();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Inner {
    fn latency(&mut self) -> u64 {
        let (min, max) = self.weather.latency_ms;
        let usual = self.rng.random_range(min..=max);
        // A long tail, as queues make it.
        let late = if self.rng.random_bool(0.02) { 10 } else { 1 };
        let lost = if self.rng.random_bool(self.weather.loss) { RETRANSMIT_MS_MIN } else { 0 };
        usual * late + lost
    }

    /// None while nothing passes; an error when nobody listens.
    fn shake_hands(
        &mut self,
        network: &Network,
        from: HostId,
        to: HostId,
    ) -> Result<Option<Stream>, io::ErrorKind> {
        let cut = self.cuts.contains(&(from, to)) || self.cuts.contains(&(to, from));
        if cut || self.dark.contains(&to) || self.dark.contains(&from) {
            return Ok(None);
        }
        let listener = self.listeners.get(&to).filter(|listener| !listener.is_closed());
        let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
        self.opened += 1;
        let connection = self.opened;
        let stream = |side| Stream { network: network.clone(), connection, side };
        let _accepted = listener.send(Ok(stream(1)));
        self.connections.insert(connection, [End::new(from), End::new(to)]);
        Ok(Some(stream(0)))
    }

    fn send(&mut self, connection: u64, to_side: usize, content: Content) {
        let now = self.history.now();
        let at = now + self.latency();
        let Some(ends) = self.connections.get_mut(&connection) else { return };
        let segment = Segment { at, retransmit: RETRANSMIT_MS_MIN, content };
        ends[to_side].arriving.push_back(segment);
    }

    /// Nobody holds this end any more.
    fn let_go(&mut self, connection: u64, side: usize) {
        let Some(ends) = self.connections.get_mut(&connection) else { return };
        let end = &mut ends[side];
        if std::mem::replace(&mut end.gone, true) {
            return;
        }
        (end.reader, end.writer) = (None, None);
        if !self.dark.contains(&end.host) {
            self.send(connection, 1 - side, Content::Close(Close::End));
        }
    }

    fn deliver(&mut self) -> Vec<Waker> {
        let now = self.history.now();
        let mut wakers = Vec::new();
        let mut resets = Vec::new();
        for (id, ends) in &mut self.connections {
            for side in 0..2 {
                let from = ends[1 - side].host;
                let end = &mut ends[side];
                while let Some(segment) = end.arriving.front_mut().filter(|it| it.at <= now) {
                    if self.cuts.contains(&(from, end.host)) {
                        segment.at = now + segment.retransmit;
                        segment.retransmit = (segment.retransmit * 2).min(RETRANSMIT_MS_MAX);
                        break;
                    }
                    let Some(segment) = end.arriving.pop_front() else { break };
                    self.history.trace(&("segment", *id, side));
                    if end.gone {
                        if !self.dark.contains(&end.host)
                            && matches!(segment.content, Content::Data(_))
                        {
                            resets.push((*id, 1 - side));
                        }
                        continue;
                    }
                    end.take(segment.content);
                    wakers.extend(end.reader.take());
                    wakers.extend(end.writer.take());
                }
            }
        }
        for (id, side) in resets {
            self.send(id, side, Content::Close(Close::Reset));
        }
        self.connections
            .retain(|_id, ends| !ends.iter().all(|end| end.gone && end.arriving.is_empty()));
        wakers
    }
}

// === impl End ===

impl End {
    const fn new(host: HostId) -> Self {
        Self {
            host,
            arriving: VecDeque::new(),
            inbox: VecDeque::new(),
            closed: None,
            gone: false,
            reader: None,
            writer: None,
        }
    }

    fn take(&mut self, content: Content) {
        match content {
            Content::Data(bytes) => self.inbox.extend(bytes),
            Content::Close(close) => self.closed = Some(close),
        }
    }

    fn bytes_under_way(&self) -> usize {
        let arriving = self.arriving.iter().map(|segment| match &segment.content {
            Content::Data(bytes) => bytes.len(),
            Content::Close(_) => 0,
        });
        arriving.sum::<usize>() + self.inbox.len()
    }
}

// === impl Stream ===

impl Connected for Stream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl Connection for Stream {
    fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
        let mut inner = self.network.0.lock();
        let Some(ends) = inner.connections.get_mut(&self.connection) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let end = &mut ends[self.side];
        match (end.inbox.front(), end.closed) {
            (Some(first), _) => Poll::Ready(Ok(Some(*first))),
            (None, Some(_)) => Poll::Ready(Ok(None)),
            (None, None) => {
                end.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn driven_here(self) -> io::Result<Self> {
        Ok(self)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.network.0.lock();
        let Some(ends) = inner.connections.get_mut(&self.connection) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let end = &mut ends[self.side];
        if end.gone || end.closed == Some(Close::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if end.inbox.is_empty() && end.closed.is_none() {
            end.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let (ready, _rest) = end.inbox.as_slices();
        let count = ready.len().min(buffer.remaining());
        buffer.put_slice(&ready[..count]);
        end.inbox.drain(..count);
        let writer = end.writer.take();
        drop(inner);
        writer.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.network.0.lock();
        let Some(ends) = inner.connections.get_mut(&self.connection) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if ends[self.side].gone || ends[self.side].closed == Some(Close::Reset) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let other = &mut ends[1 - self.side];
        if other.bytes_under_way() > WINDOW_BYTES {
            other.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        inner.send(self.connection, 1 - self.side, Content::Data(bytes.to_vec()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.network.0.lock();
        let is_held = inner.connections.get(&self.connection).is_some_and(|it| !it[self.side].gone);
        if is_held {
            inner.send(self.connection, 1 - self.side, Content::Close(Close::End));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.network.0.lock().let_go(self.connection, self.side);
    }
}
