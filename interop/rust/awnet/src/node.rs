//! The swarm and its one task: connections, identify, liveness, gossip and Kademlia. Others reach it through `Net`.
//! Implements "Names", "Identity", "Connections" and the network side of "Gossip" and "DHT" of docs/protocol.md.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aw::crypto::Hash;
use aw::records::{self, Head};
use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::core::upgrade::Version;
use libp2p::gossipsub::{self, MessageAcceptance, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;
use libp2p::kad::{QueryId, QueryResult};
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, Swarm, Transport, connection_limits, identify, noise, ping, tcp, yamux};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::dht::{self, KAD};
use crate::liveness::{PING_PERIOD, PING_TIMEOUT, Socket};
use crate::session::Failure;
use crate::streams::{self, Conduit};
use aw::gossip::{self, Verdict};

const DIAL_MAX: Duration = Duration::from_secs(5);
const HEAD_SKEW_MS: i64 = 60_000;
const ADDRESS_BYTES_MAX: usize = 128;

/// What a node tells of by itself.
pub enum Event {
    /// The first connection to a peer is there; the last one is gone.
    Connected(PeerId),
    Disconnected(PeerId),
    /// A message of another peer was judged.
    Gossip {
        topic: String,
        verdict: Verdict,
        data: Vec<u8>,
        author: PeerId,
    },
    /// A head of a world that is followed, above the last.
    Head(Head),
}

/// What a node leaves to whoever runs it. As it stands here: a client, who serves nothing and listens to nothing.
pub trait Host: Send + Sync + 'static {
    /// Takes a stream that another peer opened, with the places for that peer's requests; none where it has too many
    /// streams. A stream that is dropped is reset.
    fn serve(&self, _stream: Conduit, _places: Option<Arc<Semaphore>>) {}

    /// This limit of a world's genesis, where the world is known: messages with larger envelopes are rejected.
    fn envelope_bytes_max(&self, _world_id: &str) -> Option<usize> {
        None
    }

    /// Is called by the node's task, and must not wait.
    fn tell(&self, _event: Event) {}
}

/// The host of a client.
pub struct Quiet;

impl Host for Quiet {}

/// How to start a node. Who listens nowhere is a client of the DHT as well. `careless`: takes whatever is published, put
/// or received by gossip; for tests.
pub struct Settings {
    pub key: Keypair,
    pub listen: Vec<Multiaddr>,
    pub careless: bool,
}

type Filter = gossipsub::MaxCountSubscriptionFilter<gossipsub::AllowAllSubscriptionFilter>;
type Pubsub = gossipsub::Behaviour<gossipsub::IdentityTransform, Filter>;

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub gossip: Pubsub,
    pub kad: dht::store::Behaviour,
    pub streams: streams::Behaviour,
}

struct Dial {
    peer: PeerId,
    connection: ConnectionId,
    /// Of who waits for a connection that was there: to be dialled when that one ends, which may be under way.
    instead: Option<Multiaddr>,
    done: oneshot::Sender<Result<(), Failure>>,
}

pub(crate) struct Node {
    pub swarm: Swarm<Behaviour>,
    pub identified: HashMap<PeerId, identify::Info>,
    /// The order of the newest head that was told, of each world that is followed.
    pub followed: HashMap<String, Option<(i64, i64, i64, Hash)>>,
    pub queries: HashMap<QueryId, mpsc::UnboundedSender<QueryResult>>,
    dials: Vec<Dial>,
    host: Arc<dyn Host>,
    careless: bool,
}

pub(crate) type Task = Box<dyn FnOnce(&mut Node) + Send>;

fn build(settings: Settings, host: &Arc<dyn Host>) -> Result<Swarm<Behaviour>, Box<dyn std::error::Error>> {
    let Settings { key, listen, careless } = settings;
    let host = host.clone();
    let accept = Arc::new(move |conduit, places| host.serve(conduit, places));
    let mut muxer = yamux::Config::default();
    // Above its limit yamux closes the whole connection; streams are limited by `streams` instead.
    muxer.set_max_num_streams(4_096);
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let tcp = tcp.map(|socket, _| Socket::over(socket));
    let swarm = libp2p::SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(|key| {
            let noise = noise::Config::new(key)?;
            Ok(tcp.upgrade(Version::V1Lazy).authenticate(noise).multiplex(muxer))
        })?
        .with_behaviour(|key| {
            let peer = key.public().to_peer_id();
            let limits = connection_limits::ConnectionLimits::default()
                .with_max_established(Some(512))
                .with_max_established_per_peer(Some(8))
                .with_max_pending_incoming(Some(64));
            let agent = concat!("aw-peer-rust/", env!("CARGO_PKG_VERSION")).to_owned();
            // Without a signed peer record: py-libp2p finds the signature of rust-libp2p's invalid.
            let identify = identify::Config::new("aw/1".into(), key.public()).with_agent_version(agent);
            let ping = ping::Config::new().with_interval(PING_PERIOD).with_timeout(PING_TIMEOUT);
            Ok(Behaviour {
                limits: connection_limits::Behaviour::new(limits),
                identify: identify::Behaviour::new(identify),
                ping: ping::Behaviour::new(ping),
                gossip: pubsub(key)?,
                kad: dht::behaviour(peer, !listen.is_empty(), careless),
                streams: streams::Behaviour::new(accept),
            })
        })?
        .with_swarm_config(|config| config.with_max_negotiating_inbound_streams(1_024))
        .with_connection_timeout(DIAL_MAX)
        .build();
    Ok(swarm)
}

fn pubsub(key: &Keypair) -> Result<Pubsub, Box<dyn std::error::Error + Send + Sync>> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id("/meshsub/1.1.0", gossipsub::Version::V1_1)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        // It counts what is buffered, several frames together; messages are held to their own limit by `gossip`.
        .max_transmit_size(2 << 20)
        .max_control_message_size(1 << 20)
        // The id that other implementations use; the default differs, so that IHAVE and IWANT would never match.
        .message_id_fn(|message| {
            let from = message.source.map(PeerId::to_bytes).unwrap_or_default();
            let seqno = message.sequence_number.unwrap_or_default().to_be_bytes();
            gossipsub::MessageId::from([from, seqno.to_vec()].concat())
        })
        .build()?;
    let filter = Filter {
        filter: gossipsub::AllowAllSubscriptionFilter {},
        max_subscribed_topics: 256,
        max_subscriptions_per_request: 256,
    };
    Ok(Pubsub::new_with_subscription_filter(MessageAuthenticity::Signed(key.clone()), config, filter)?)
}

/// `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`, with the peer's own id or none, in addr_bytes_max: a name may be of any length.
pub(crate) fn usable(address: &Multiaddr, peer: &PeerId) -> bool {
    use Protocol::{Dns, Dns4, Dns6, Ip4, Ip6, P2p, Tcp};
    if address.len() > ADDRESS_BYTES_MAX {
        return false;
    }
    let parts: Vec<Protocol> = address.iter().collect();
    match parts.as_slice() {
        [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Tcp(_)] => true,
        [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Tcp(_), P2p(id)] => id == peer,
        _ => false,
    }
}

/// Starts the node, which ends when nobody holds its queue any more. Returns when all its listeners are known.
pub(crate) async fn start(
    settings: Settings,
    host: Arc<dyn Host>,
    queue: mpsc::Receiver<Task>,
) -> Result<Vec<Multiaddr>, Box<dyn std::error::Error>> {
    let (listen, careless) = (settings.listen.clone(), settings.careless);
    let swarm = build(settings, &host)?;
    let (identified, followed, queries, dials) = Default::default();
    let mut node = Node { swarm, identified, followed, queries, dials, host, careless };
    let mut waiting = HashSet::<ListenerId>::new();
    for address in listen {
        waiting.insert(node.swarm.listen_on(address)?);
    }
    let mut addresses = Vec::new();
    while !waiting.is_empty() {
        match node.swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { listener_id, address } => {
                waiting.remove(&listener_id);
                // Only external addresses go into this peer's own provider records.
                node.swarm.add_external_address(address.clone());
                addresses.push(address);
            }
            SwarmEvent::ListenerClosed { reason, .. } => reason?,
            event => node.on_event(event),
        }
    }
    tokio::spawn(node.run(queue));
    Ok(addresses)
}

impl Node {
    async fn run(mut self, mut queue: mpsc::Receiver<Task>) {
        loop {
            tokio::select! {
                task = queue.recv() => match task {
                    Some(task) => task(&mut self),
                    None => return,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
            }
        }
    }

    pub fn dial(&mut self, address: Multiaddr, peer: PeerId, done: oneshot::Sender<Result<(), Failure>>) {
        if self.identified.contains_key(&peer) && self.swarm.is_connected(&peer) {
            // The command may have timed out.
            let _ = done.send(Ok(()));
            return;
        }
        self.dials.retain(|dial| !dial.done.is_closed());
        // Beside a dial that is on its way, too: that one may be at a dead address.
        let options = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).addresses(vec![address.clone()]);
        let options = options.build();
        let connection = options.connection_id();
        let instead = match self.swarm.dial(options) {
            Ok(()) => None,
            // Where a connection is there, identify is all that is waited for.
            Err(DialError::DialPeerConditionFalse(_)) => Some(address),
            Err(error) => return drop(done.send(Err(Failure::Stream(error.to_string())))),
        };
        self.dials.push(Dial { peer, connection, instead, done });
    }

    /// Who dials from now on waits for the next connection; who did before has failed.
    pub fn disconnect(&mut self, peer: PeerId) {
        self.identified.remove(&peer);
        self.dials.iter_mut().filter(|dial| dial.peer == peer).for_each(|dial| dial.instead = None);
        // Whoever is not connected is disconnected already.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    fn finish_dials(&mut self, which: impl Fn(&Dial) -> bool, result: Option<&str>) {
        for dial in self.dials.extract_if(.., |dial| which(dial)) {
            let _ = dial.done.send(result.map_or(Ok(()), |why| Err(Failure::Stream(why.into()))));
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, num_established, .. } if num_established.get() == 1 => {
                self.host.tell(Event::Connected(peer_id));
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.identified.remove(&peer_id);
                self.host.tell(Event::Disconnected(peer_id));
                let dials: Vec<Dial> = self.dials.extract_if(.., |dial| dial.peer == peer_id).collect();
                for Dial { instead, done, .. } in dials.into_iter().filter(|dial| !dial.done.is_closed()) {
                    match instead {
                        Some(address) => self.dial(address, peer_id, done),
                        None => drop(done.send(Err(Failure::Stream("the connection was closed".into())))),
                    }
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.finish_dials(|dial| dial.connection == connection_id, Some(&error.to_string()));
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                if info.protocols.contains(&KAD) {
                    self.place(&peer_id, &info.listen_addrs);
                }
                self.identified.insert(peer_id, info);
                self.finish_dials(|dial| dial.peer == peer_id, None);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => self.on_message(propagation_source, message_id, message),
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_query(event),
            _ => {}
        }
    }

    /// This peer's own verdict on a message.
    pub fn judge(&self, topic: &str, data: &[u8]) -> (Verdict, Option<String>) {
        if self.careless {
            return (Verdict::Accept, None);
        }
        let limit = gossip::parse_topic(topic).and_then(|(world_id, _)| self.host.envelope_bytes_max(world_id));
        let (verdict, why) = gossip::judge(topic, data, limit.unwrap_or(0));
        (verdict, why.map(|why| why.to_string()))
    }

    fn on_message(&mut self, from: PeerId, id: gossipsub::MessageId, message: gossipsub::Message) {
        let (topic, data) = (message.topic.into_string(), message.data);
        let (verdict, _) = self.judge(&topic, &data);
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(&id, &from, acceptance);
        let author = message.source.unwrap_or(from);
        self.host.tell(Event::Gossip { topic: topic.clone(), verdict, data: data.clone(), author });
        if let (Verdict::Accept, Some((world_id, "head"))) = (verdict, gossip::parse_topic(&topic)) {
            self.on_head(world_id, &data);
        }
    }

    /// Tells of a head of a followed world that is newer than the last one, and not dated far ahead.
    fn on_head(&mut self, world_id: &str, data: &[u8]) {
        let Some(last) = self.followed.get_mut(world_id) else { return };
        let Ok(head) = records::check_head(data, Some(world_id)) else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64);
        if last.is_none_or(|last| last < head.order) && head.as_of_ms() <= now + HEAD_SKEW_MS {
            *last = Some(head.order);
            self.host.tell(Event::Head(head));
        }
    }
}
