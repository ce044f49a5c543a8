//! Raw streams of `/aw/rr/1` over the swarm: hides libp2p's behaviour and handler. Inbound streams go to a task each;
//! outbound ones are opened on demand. Implements the limits of "Connections" of docs/protocol.md.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, DialUpgradeError, FullyNegotiatedInbound,
    FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, Stream,
    StreamProtocol, SubstreamProtocol, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use aw::crypto::KEY_ID_PREFIX;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/aw/rr/1");
const STREAMS_PER_PEER_MAX: usize = 64;
/// Those that are above the last limit too, and are told so. What is above this one is reset.
const INBOUND_STREAMS_PER_PEER_MAX: usize = 256;
const IN_FLIGHT_PER_PEER_MAX: usize = 64;
const STREAM_WAIT: Duration = Duration::from_secs(1);
const NEGOTIATION: Duration = Duration::from_secs(4);
/// Longer than what the other side is given: it may be busy, and whoever asked has a deadline of its own.
const OPENING: Duration = Duration::from_secs(10);

/// A stream, and the news that its connection is gone: rust-libp2p does not wake reads when this side closed it.
#[derive(Debug)]
pub struct Conduit {
    pub stream: Stream,
    pub closed: watch::Receiver<()>,
    /// Held as long as the stream is.
    pub place: Option<Place>,
}

/// One of those that a peer may have open; the second of those that are served.
type Place = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);
pub(crate) type Opened = oneshot::Sender<Result<Conduit, String>>;
/// Takes an inbound stream, with the places for requests of its peer; on one stream too many there are none.
pub(crate) type Accept = Arc<dyn Fn(Conduit, Option<Arc<Semaphore>>) + Send + Sync>;

/// What one peer may hold, over all its connections.
#[derive(Clone)]
struct Allowance {
    streams: Arc<Semaphore>,
    served: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

impl Default for Allowance {
    fn default() -> Self {
        let streams = Arc::new(Semaphore::new(INBOUND_STREAMS_PER_PEER_MAX));
        let served = Arc::new(Semaphore::new(STREAMS_PER_PEER_MAX));
        Allowance { streams, served, requests: Arc::new(Semaphore::new(IN_FLIGHT_PER_PEER_MAX)) }
    }
}

pub(crate) struct Behaviour {
    accept: Accept,
    allowances: HashMap<PeerId, Allowance>,
    opening: VecDeque<(PeerId, Opened)>,
}

impl Behaviour {
    pub fn new(accept: Accept) -> Self {
        Behaviour { accept, allowances: HashMap::new(), opening: VecDeque::new() }
    }

    /// Where there is no connection the sender is dropped.
    pub fn open(&mut self, peer: PeerId, opened: Opened) {
        self.opening.push_back((peer, opened));
    }

    fn handler(&mut self, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        if !peer.to_bytes().starts_with(&KEY_ID_PREFIX) {
            return Err(ConnectionDenied::new("a peer is an Ed25519 peer"));
        }
        let allowance = self.allowances.entry(peer).or_default().clone();
        let (closed, _) = watch::channel(());
        Ok(Handler { accept: self.accept.clone(), opening: VecDeque::new(), allowance, closed })
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, remaining_established: 0, .. }) = event {
            self.allowances.remove(&peer_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, never: Infallible) {
        match never {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Opened>> {
        match self.opening.pop_front() {
            Some((peer_id, event)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::Any, event })
            }
            // The node polls the swarm after each of its own commands, so that no waker is kept.
            None => Poll::Pending,
        }
    }
}

pub(crate) struct Handler {
    accept: Accept,
    opening: VecDeque<Opened>,
    allowance: Allowance,
    /// Dropped with the handler, that is with the connection.
    closed: watch::Sender<()>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Opened;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opened;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ()).with_timeout(NEGOTIATION)
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Opened, Infallible>> {
        let Some(opened) = self.opening.pop_front() else { return Poll::Pending };
        let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), opened).with_timeout(OPENING);
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
    }

    fn on_behaviour_event(&mut self, opened: Opened) {
        self.opening.push_back(opened);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), Opened>,
    ) {
        let closed = self.closed.subscribe();
        // Whoever asked for a stream may have given up: the stream is then dropped, that is reset.
        let _ = match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                let Allowance { streams, served, requests } = self.allowance.clone();
                if let Ok(open) = streams.try_acquire_owned() {
                    let accept = self.accept.clone();
                    tokio::spawn(async move {
                        // The peer may have ended others whose end is still under way.
                        let turn = timeout(STREAM_WAIT, served.acquire_owned()).await.ok().and_then(Result::ok);
                        let places = turn.is_some().then_some(requests);
                        accept(Conduit { stream, closed, place: Some((open, turn)) }, places);
                    });
                }
                Ok(())
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info }) => {
                info.send(Ok(Conduit { stream, closed, place: None }))
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => info.send(Err(error.to_string())),
            _ => Ok(()),
        };
    }
}
