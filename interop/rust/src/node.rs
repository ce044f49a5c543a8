//! The swarm and its one task: connections, identify, liveness, gossip and Kademlia. Others reach it through `Net`.
//! Implements "Names", "Identity", "Connections" and the network side of "Gossip" and "DHT" of docs/protocol.md.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::gossipsub::{self, MessageAcceptance, MessageAuthenticity, ValidationMode};
use libp2p::identity::Keypair;
use libp2p::kad::{self, QueryId, QueryResult};
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, connection_limits, identify, noise, ping, tcp, yamux};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::dht::{self, HeadStore};
use crate::gossip::{self, Verdict};
use crate::library::Library;
use crate::rr::{self, Failure};
use crate::streams;
use aw::crypto::hex;
use aw::records;

const KAD: StreamProtocol = StreamProtocol::new("/aw/kad/1.0.0");
const DIAL_MAX: Duration = Duration::from_secs(5);
const LIVENESS_PERIOD: Duration = Duration::from_secs(5);
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(4);
const IN_FLIGHT_TOTAL: usize = 1_024;
const HEAD_SKEW_MS: i64 = 60_000;

type Filter = gossipsub::MaxCountSubscriptionFilter<gossipsub::AllowAllSubscriptionFilter>;
type Pubsub = gossipsub::Behaviour<gossipsub::IdentityTransform, Filter>;

#[derive(NetworkBehaviour)]
pub struct Behaviour {
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub gossip: Pubsub,
    pub kad: dht::Behaviour,
    streams: streams::Behaviour,
}

struct Dial {
    peer: PeerId,
    connection: ConnectionId,
    done: oneshot::Sender<Result<(), Failure>>,
}

pub struct Node {
    pub swarm: Swarm<Behaviour>,
    pub identified: HashMap<PeerId, identify::Info>,
    /// The order of the newest head that was told, of each world that is followed.
    pub followed: HashMap<String, Option<(i64, i64, i64, aw::crypto::Hash)>>,
    queries: HashMap<QueryId, mpsc::UnboundedSender<QueryResult>>,
    dials: Vec<Dial>,
    library: Arc<Library>,
    careless: bool,
}

type Task = Box<dyn FnOnce(&mut Node) + Send>;

/// The way to the node for everybody else.
#[derive(Clone)]
pub struct Net {
    tasks: mpsc::Sender<Task>,
}

fn build(key: Keypair, library: &Arc<Library>, careless: bool) -> Result<Swarm<Behaviour>, Box<dyn std::error::Error>> {
    let places = Arc::new(Semaphore::new(IN_FLIGHT_TOTAL));
    let service: Arc<dyn rr::Service> = library.clone();
    let accept = Arc::new(move |conduit, of_peer| {
        let places = rr::Places { of_peer, of_all: places.clone() };
        tokio::spawn(rr::serve(service.clone(), conduit, places));
    });
    let muxer = || {
        let mut config = yamux::Config::default();
        // Above its limit yamux closes the whole connection; streams are limited by `streams` instead.
        config.set_max_num_streams(4_096);
        config
    };
    let swarm = libp2p::SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, muxer)?
        .with_behaviour(|key| {
            let peer = key.public().to_peer_id();
            let limits = connection_limits::ConnectionLimits::default()
                .with_max_established(Some(512))
                .with_max_established_per_peer(Some(8))
                .with_max_pending_incoming(Some(64));
            let agent = concat!("aw-peer-rust/", env!("CARGO_PKG_VERSION")).to_owned();
            // Without a signed peer record: py-libp2p finds the signature of rust-libp2p's invalid.
            let identify = identify::Config::new("aw/1".into(), key.public()).with_agent_version(agent);
            let ping = ping::Config::new().with_interval(LIVENESS_PERIOD).with_timeout(LIVENESS_TIMEOUT);
            Ok(Behaviour {
                limits: connection_limits::Behaviour::new(limits),
                identify: identify::Behaviour::new(identify),
                ping: ping::Behaviour::new(ping),
                gossip: pubsub(key)?,
                kad: kademlia(peer, careless),
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

fn kademlia(peer: PeerId, careless: bool) -> dht::Behaviour {
    let mut config = kad::Config::new(KAD);
    config
        .set_query_timeout(Duration::from_secs(15))
        .set_provider_publication_interval(Some(Duration::from_secs(300)))
        .set_max_packet_size(1 << 20)
        // Addresses come from identify, where their form is judged.
        .set_kbucket_inserts(kad::BucketInserts::Manual);
    let mut behaviour = kad::Behaviour::with_config(peer, HeadStore::new(peer, careless), config);
    behaviour.set_mode(Some(kad::Mode::Server));
    dht::Behaviour(behaviour)
}

/// `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`, with the peer's own id or none.
fn usable(address: &Multiaddr, peer: &PeerId) -> bool {
    use Protocol::{Dns, Dns4, Dns6, Ip4, Ip6, P2p, Tcp};
    let parts: Vec<Protocol> = address.iter().collect();
    match parts.as_slice() {
        [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Tcp(_)] => true,
        [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Tcp(_), P2p(id)] => id == peer,
        _ => false,
    }
}

/// Starts the node. Ends when all its listeners are known.
pub async fn start(
    key: Keypair,
    listen: Vec<Multiaddr>,
    library: Arc<Library>,
    careless: bool,
) -> Result<(Net, Vec<Multiaddr>), Box<dyn std::error::Error>> {
    let mut swarm = build(key, &library, careless)?;
    let mut waiting = HashSet::<ListenerId>::new();
    for address in listen {
        waiting.insert(swarm.listen_on(address)?);
    }
    let mut addresses = Vec::new();
    while !waiting.is_empty() {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { listener_id, address } => {
                waiting.remove(&listener_id);
                // Only external addresses go into this peer's own provider records.
                swarm.add_external_address(address.clone());
                addresses.push(address);
            }
            SwarmEvent::ListenerClosed { reason, .. } => reason?,
            _ => {}
        }
    }
    let (tasks, queue) = mpsc::channel(1_024);
    let (identified, followed, queries) = (HashMap::new(), HashMap::new(), HashMap::new());
    let node = Node { swarm, identified, followed, queries, dials: Vec::new(), library, careless };
    tokio::spawn(node.run(queue));
    Ok((Net { tasks }, addresses))
}

impl Net {
    /// Runs a piece of work on the node.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let gone = |_| Failure::Stream("the node is gone".into());
        let (tell, told) = oneshot::channel();
        let task: Task = Box::new(move |node| {
            // Whoever asked may have stopped waiting.
            let _ = tell.send(work(node));
        });
        self.tasks.send(task).await.map_err(|_| Failure::Stream("the node is gone".into()))?;
        told.await.map_err(gone)
    }

    pub async fn dial(&self, address: Multiaddr, peer: PeerId) -> Result<(), Failure> {
        let (done, dialled) = oneshot::channel();
        self.with(move |node| node.dial(address, peer, done)).await?;
        dialled.await.map_err(|_| Failure::Stream("the dial was given up".into()))?
    }

    pub async fn open(&self, peer: PeerId) -> Result<streams::Conduit, Failure> {
        let (opened, conduit) = oneshot::channel();
        self.with(move |node| node.swarm.behaviour_mut().streams.open(peer, opened)).await?;
        conduit.await.map_err(|_| Failure::Stream(format!("{peer} is not connected")))?.map_err(Failure::Stream)
    }

    /// Starts a Kademlia query: its results, until it has ended.
    pub async fn query(
        &self,
        start: impl FnOnce(&mut kad::Behaviour<HeadStore>) -> Result<QueryId, Failure> + Send + 'static,
    ) -> Result<mpsc::UnboundedReceiver<QueryResult>, Failure> {
        self.with(move |node| {
            let id = start(&mut node.swarm.behaviour_mut().kad.0)?;
            // Bounded by the peers that one query asks.
            let (tell, results) = mpsc::unbounded_channel();
            node.queries.insert(id, tell);
            Ok(results)
        })
        .await?
    }
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

    fn dial(&mut self, address: Multiaddr, peer: PeerId, done: oneshot::Sender<Result<(), Failure>>) {
        if self.identified.contains_key(&peer) && self.swarm.is_connected(&peer) {
            // The command may have timed out.
            let _ = done.send(Ok(()));
            return;
        }
        self.dials.retain(|dial| !dial.done.is_closed());
        let options = DialOpts::peer_id(peer).addresses(vec![address]).build();
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            // Where a connection is there or on its way, identify is all that is waited for.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => self.dials.push(Dial { peer, connection, done }),
            Err(error) => {
                let _ = done.send(Err(Failure::Stream(error.to_string())));
            }
        }
    }

    fn finish_dials(&mut self, which: impl Fn(&Dial) -> bool, result: Option<&str>) {
        for dial in self.dials.extract_if(.., |dial| which(dial)) {
            let _ = dial.done.send(result.map_or(Ok(()), |why| Err(Failure::Stream(why.into()))));
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, num_established, .. } if num_established.get() == 1 => {
                crate::say(&json!({"event": "connected", "peer": peer_id.to_string()}));
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.identified.remove(&peer_id);
                self.finish_dials(|dial| dial.peer == peer_id, Some("the connection was closed"));
                crate::say(&json!({"event": "disconnected", "peer": peer_id.to_string()}));
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.finish_dials(|dial| dial.connection == connection_id, Some(&error.to_string()));
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                if info.protocols.contains(&KAD) {
                    for address in info.listen_addrs.iter().filter(|a| usable(a, &peer_id)).take(16) {
                        self.swarm.behaviour_mut().kad.0.add_address(&peer_id, address.clone());
                    }
                }
                self.identified.insert(peer_id, info);
                self.finish_dials(|dial| dial.peer == peer_id, None);
            }
            // libp2p passes over the first failure in silence, so that this is the second in a row; it closes nothing.
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event { connection, result: Err(error), .. }))
                if !matches!(error, ping::Failure::Unsupported) =>
            {
                self.swarm.close_connection(connection);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => self.on_message(propagation_source, message_id, message),
            SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id,
                result,
                step,
                ..
            })) => {
                if let Some(tell) = self.queries.get(&id) {
                    // The command may have timed out.
                    let _ = tell.send(result);
                }
                if step.last {
                    self.queries.remove(&id);
                }
            }
            _ => {}
        }
    }

    /// This peer's own verdict on a message.
    pub fn judge(&self, topic: &str, data: &[u8]) -> (Verdict, Option<String>) {
        if self.careless {
            return (Verdict::Accept, None);
        }
        let world = gossip::parse_topic(topic).and_then(|(world_id, _)| self.library.world(world_id));
        let limit = world.and_then(|world| world.limit("envelope_bytes_max").ok()).unwrap_or(0);
        let (verdict, why) = gossip::judge(topic, data, limit);
        (verdict, why.map(|why| why.to_string()))
    }

    fn on_message(&mut self, from: PeerId, id: gossipsub::MessageId, message: gossipsub::Message) {
        let topic = message.topic.as_str();
        let (verdict, _) = self.judge(topic, &message.data);
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(&id, &from, acceptance);
        let author = message.source.unwrap_or(from).to_string();
        crate::say(&json!({"event": "gossip", "topic": topic, "verdict": verdict.name(), "data": hex(&message.data),
            "from": author}));
        if let (Verdict::Accept, Some((world_id, "head"))) = (verdict, gossip::parse_topic(topic)) {
            self.on_head(world_id, &message.data);
        }
    }

    /// Tells of a head of a followed world that is newer than the last one, and not dated far ahead.
    fn on_head(&mut self, world_id: &str, data: &[u8]) {
        let Some(last) = self.followed.get_mut(world_id) else { return };
        let Ok(head) = records::check_head(data, Some(world_id)) else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64);
        if last.is_none_or(|last| last < head.order) && head.order.2 <= now + HEAD_SKEW_MS {
            *last = Some(head.order);
            let block_hash = hex(head.block_hash().unwrap_or_default());
            crate::say(
                &json!({"event": "head", "world_id": world_id, "height": head.height(), "block_hash": block_hash}),
            );
        }
    }

    /// Addresses of a peer that are known without asking anybody.
    pub fn known_addresses(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
        if peer == self.swarm.local_peer_id() {
            return self.swarm.external_addresses().cloned().collect();
        }
        let told = self.identified.get(peer).map(|info| info.listen_addrs.clone()).unwrap_or_default();
        let told: Vec<Multiaddr> = told.into_iter().filter(|address| usable(address, peer)).collect();
        if !told.is_empty() {
            return told;
        }
        let Some(bucket) = self.swarm.behaviour_mut().kad.0.kbucket(*peer) else { return Vec::new() };
        let entry = bucket.iter().find(|entry| entry.node.key.preimage() == peer);
        entry.map(|entry| entry.node.value.clone().into_vec()).unwrap_or_default()
    }
}
