//! Kademlia: heads and providers, told and found. Hides queries and libp2p's types; guarantees that a head that is found
//! is the newest valid one of all that answered. What is kept for others is in `store`. Implements "DHT" of docs/protocol.md.

use std::num::NonZeroUsize;
use std::time::Duration;

use aw::cbor::{self, refuse};
use aw::crypto::{Hash, KEY_ID_PREFIX, provider_key};
use aw::records::{self, Head};
use aw::schema;
use futures::future::join_all;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{
    self, GetClosestPeersOk, GetProvidersOk, GetRecordOk, QueryId, QueryResult, Quorum, Record, RecordKey,
};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::net::Net;
use crate::node::{Node, usable};
use crate::session::Failure;
use store::HeadStore;

pub(crate) mod store;

pub(crate) const KAD: StreamProtocol = StreamProtocol::new("/aw/kad/1.0.0");

const IDENTIFY: Duration = Duration::from_secs(1);
const LOOKUP: Duration = Duration::from_secs(15);
/// Providers that are taken of one answer.
const PEERS_MAX: usize = 20;
const MESSAGE_BYTES_MAX: usize = 262_144;

pub fn head_key(world_id: &str) -> String {
    format!("/aw/world/{world_id}/head")
}

/// The validator: the head that a record holds.
fn validate(key: &[u8], value: &[u8]) -> cbor::Result<Head> {
    let text = std::str::from_utf8(key).ok();
    let world_id = text.and_then(|key| key.strip_prefix("/aw/world/")?.strip_suffix("/head"));
    match world_id.filter(|id| schema::world_ok(id)) {
        Some(world_id) => records::check_head(value, Some(world_id)),
        None => refuse("the key is none of a head"),
    }
}

/// What can be used of a peer's addresses, as it told them: libp2p has added its id.
fn as_told(addresses: Vec<Multiaddr>, peer: &PeerId) -> Vec<Multiaddr> {
    let told = addresses.into_iter().map(|mut address| {
        if address.iter().last() == Some(Protocol::P2p(*peer)) {
            address.pop();
        }
        address
    });
    told.filter(|address| usable(address, peer)).take(store::ADDRESSES_MAX).collect()
}

/// Kademlia for the swarm. Who listens nowhere can serve nobody, and only asks.
pub(crate) fn behaviour(peer: PeerId, serves: bool, careless: bool) -> store::Behaviour {
    let mut config = kad::Config::new(KAD);
    config
        .set_query_timeout(Duration::from_secs(15))
        // Who refuses a put says nothing: the reset that libp2p means to send waits until something else happens.
        .set_substreams_timeout(Duration::from_secs(5))
        .set_provider_publication_interval(Some(Duration::from_secs(300)))
        .set_max_packet_size(MESSAGE_BYTES_MAX)
        // Addresses come from identify, where their form is judged.
        .set_kbucket_inserts(kad::BucketInserts::Manual);
    let mut behaviour = kad::Behaviour::with_config(peer, HeadStore::new(peer, careless), config);
    behaviour.set_mode(Some(if serves { kad::Mode::Server } else { kad::Mode::Client }));
    store::Behaviour::new(behaviour)
}

/// What bounds this peer's own store is a rule of its own.
fn no_room(error: kad::store::Error) -> Failure {
    Failure::Refused(error.to_string())
}

impl Node {
    /// Tells the results of a query to whoever started it.
    pub(crate) fn on_query(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else { return };
        if let Some(tell) = self.queries.get(&id) {
            // The command may have timed out.
            let _ = tell.send(result);
        }
        if step.last {
            self.queries.remove(&id);
        }
    }

    /// Puts a peer into the table, with what can be dialled of its addresses. Those that it told earlier go: pushes of
    /// identify would add up without end.
    pub(crate) fn place(&mut self, peer: &PeerId, addresses: &[Multiaddr]) {
        let told = addresses.iter().filter(|address| usable(address, peer)).take(store::ADDRESSES_MAX);
        let told: Vec<_> = told.filter_map(|address| address.clone().with_p2p(*peer).ok()).collect();
        let kad = &mut self.swarm.behaviour_mut().kad.0;
        let held = kad.kbucket(*peer).and_then(|bucket| {
            let mut entries = bucket.iter();
            entries.find(|entry| entry.node.key.preimage() == peer).map(|entry| entry.node.value.clone().into_vec())
        });
        if held.is_none() {
            kad.remove_peer(peer); // it may wait for a place, with addresses that nobody can list
        }
        for address in &told {
            kad.add_address(peer, address.clone());
        }
        let held = held.unwrap_or_default();
        for address in held.iter().filter(|address| !told.is_empty() && !told.contains(address)) {
            kad.remove_address(peer, address);
        }
    }

    /// Addresses of a peer that are known without asking anybody.
    fn known_addresses(&mut self, peer: &PeerId) -> Vec<Multiaddr> {
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

impl Net {
    /// Starts a query: its results, until it has ended.
    async fn query(
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

    /// Keeps a record here and puts it to the peers nearest to its key.
    pub async fn dht_put(&self, key: String, value: Vec<u8>) -> Result<(), Failure> {
        if !self.careless {
            validate(key.as_bytes(), &value)?;
        }
        let start = move |kad: &mut kad::Behaviour<HeadStore>| {
            let record = Record::new(key.into_bytes(), value);
            if !kad.store_mut().accepts(&record) {
                return Err(Failure::Refused("a newer head is held".into()));
            }
            kad.put_record(record, Quorum::One).map_err(no_room)
        };
        // Nobody near who took it is no failure: it is held here, and put again.
        let mut results = self.query(start).await?;
        while results.recv().await.is_some() {}
        Ok(())
    }

    /// The newest valid head of all that were found; who gave an older one, or should have had one, gets it.
    pub async fn dht_get(&self, key: String) -> Result<Head, Failure> {
        let record_key = RecordKey::new(&key);
        let wanted = record_key.clone();
        let mut results = self.query(move |kad| Ok(kad.get_record(wanted))).await?;
        let (mut best, mut given, mut without) = (None::<Head>, Vec::new(), Vec::new());
        while let Some(result) = results.recv().await {
            match result {
                QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => {
                    let Ok(head) = validate(key.as_bytes(), &found.record.value) else { continue };
                    given.extend(found.peer.map(|peer| (peer, head.order)));
                    if best.as_ref().is_none_or(|best| best.order < head.order) {
                        best = Some(head);
                    }
                }
                QueryResult::GetRecord(Ok(GetRecordOk::FinishedWithNoAdditionalRecord { cache_candidates })) => {
                    without.extend(cache_candidates.into_values());
                }
                _ => {}
            }
        }
        let best = best.ok_or_else(|| Failure::NotFound("no valid record of this key".into()))?;
        let older = given.into_iter().filter(|(_, order)| *order < best.order).map(|(peer, _)| peer);
        let behind: Vec<PeerId> = older.chain(without).collect();
        if !behind.is_empty() {
            let record = Record::new(record_key, best.value.encode());
            self.query(move |kad| Ok(kad.put_record_to(record, behind.into_iter(), Quorum::One))).await?;
        }
        Ok(best)
    }

    /// What is held here under a key, valid or not, and how many milliseconds ago it was put last.
    pub async fn dht_held(&self, key: String) -> Result<(Vec<u8>, u64), Failure> {
        let key = RecordKey::new(&key);
        let held = self.with(move |node| {
            let store = node.swarm.behaviour_mut().kad.0.store_mut();
            store.get(&key).map(|record| (record.into_owned().value, store.age(&key).as_millis() as u64))
        });
        held.await?.ok_or_else(|| Failure::NotFound("nothing is held under this key".into()))
    }

    pub async fn provide(&self, content_id: Hash) -> Result<(), Failure> {
        let key = RecordKey::new(&provider_key(&content_id));
        let mut results = self.query(move |kad| kad.start_providing(key).map_err(no_room)).await?;
        while results.recv().await.is_some() {}
        Ok(())
    }

    pub async fn find_providers(&self, content_id: &[u8]) -> Result<Vec<(PeerId, Vec<Multiaddr>)>, Failure> {
        let key = RecordKey::new(&provider_key(content_id));
        let mut results = self.query(move |kad| Ok(kad.get_providers(key))).await?;
        let mut peers = Vec::new();
        while let Some(result) = results.recv().await {
            if let QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) = result {
                let ours = providers.into_iter().filter(|peer| peer.to_bytes().starts_with(&KEY_ID_PREFIX));
                peers.extend(ours.take(PEERS_MAX));
            }
        }
        peers.sort();
        peers.dedup();
        // All at once, and no longer than one look-up: who gives many that nobody knows holds up nobody.
        let deadline = Instant::now() + LOOKUP;
        let found = peers.into_iter().map(async |peer| match timeout_at(deadline, self.addresses(peer)).await {
            Ok(addresses) => Ok((peer, addresses?)),
            Err(_) => Ok((peer, Vec::new())),
        });
        join_all(found).await.into_iter().collect()
    }

    async fn addresses(&self, peer: PeerId) -> Result<Vec<Multiaddr>, Failure> {
        let mut addresses = self.with(move |node| node.known_addresses(&peer)).await?;
        if addresses.is_empty() {
            addresses = self.look_up(peer).await?;
        }
        // Whom the query itself has just reached may not have said yet what it is.
        if addresses.is_empty() && self.peers().await?.contains(&peer) {
            let _ = timeout(IDENTIFY, self.identify(peer)).await;
            addresses = self.with(move |node| node.known_addresses(&peer)).await?;
        }
        Ok(addresses)
    }

    /// Addresses of a peer, from those nearest to its id: an answer about providers tells only who they are.
    async fn look_up(&self, peer: PeerId) -> Result<Vec<Multiaddr>, Failure> {
        let mut results = self.query(move |kad| Ok(kad.get_n_closest_peers(peer, NonZeroUsize::MIN))).await?;
        let mut addresses = Vec::new();
        while let Some(result) = results.recv().await {
            if let QueryResult::GetClosestPeers(Ok(GetClosestPeersOk { peers, .. })) = result {
                addresses.extend(peers.into_iter().filter(|info| info.peer_id == peer).flat_map(|info| info.addrs));
            }
        }
        Ok(as_told(addresses, &peer))
    }

    /// Who is in the routing table.
    pub async fn dht_peers(&self) -> Result<Vec<PeerId>, Failure> {
        self.with(|node| {
            let buckets = node.swarm.behaviour_mut().kad.0.kbuckets();
            buckets.flat_map(|b| b.iter().map(|e| *e.node.key.preimage()).collect::<Vec<_>>()).collect()
        })
        .await
    }
}
