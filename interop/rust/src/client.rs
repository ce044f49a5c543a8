//! What this peer asks of others: requests, blobs, records of the DHT, whole worlds. Every answer is checked before it
//! is believed. Implements the client side of "Request / response", "DHT" and "Joining a world" of docs/protocol.md.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libp2p::kad::{self, GetClosestPeersOk, GetProvidersOk, GetRecordOk, QueryResult, Quorum, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::dht;
use crate::frames::NOT_FOUND;
use crate::library::{Library, Mirror};
use crate::node::Net;
use crate::rr::{self, Failure, Session, lock};
use crate::streams::Conduit;
use aw::cbor::{self, ITEMS_MAX, Value, ensure, map};
use aw::chain::{Descent, Lists};
use aw::crypto::{self, Hash, provider_key};
use aw::records::{self, Head};
use aw::schema;
use aw::world::World;

/// Streams of one request each to one peer, which serves 64: the session is one, and those that end count a while.
const ALONE_MAX: usize = 48;
const OPENING_MAX: usize = 16;
const HEIGHTS_MAX: i64 = 100_000;
const BLOCKS_AT_ONCE: i64 = 256;
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The streams to one peer.
struct Lane {
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    alone: Semaphore,
}

pub struct Client {
    pub net: Net,
    pub library: Arc<Library>,
    pub careless: bool,
    lanes: Mutex<HashMap<PeerId, Arc<Lane>>>,
    /// Streams being opened: a slow peer negotiates a few in time, but not hundreds at once.
    opening: Semaphore,
}

impl Client {
    pub fn new(net: Net, library: Arc<Library>, careless: bool) -> Self {
        Client { net, library, careless, lanes: Mutex::default(), opening: Semaphore::new(OPENING_MAX) }
    }

    fn lane(&self, peer: PeerId) -> Arc<Lane> {
        let new = || Arc::new(Lane { session: Default::default(), alone: Semaphore::new(ALONE_MAX) });
        lock(&self.lanes).entry(peer).or_insert_with(new).clone()
    }

    pub async fn open(&self, peer: PeerId) -> Result<Conduit, Failure> {
        let _turn = self.opening.acquire().await.map_err(|_| Failure::Stream("closing".into()))?;
        self.net.open(peer).await
    }

    async fn session(&self, peer: PeerId) -> Result<Arc<Session>, Failure> {
        let lane = self.lane(peer);
        let mut slot = lane.session.lock().await;
        if let Some(session) = slot.as_ref().filter(|session| session.is_open()) {
            return Ok(session.clone());
        }
        let session = Session::start(self.open(peer).await?);
        *slot = Some(session.clone());
        Ok(session)
    }

    pub async fn request(&self, peer: PeerId, method: &str, body: Vec<u8>, one_shot: bool) -> Result<Vec<u8>, Failure> {
        if one_shot {
            let part = |_: &[u8]| Err(Failure::Stream("an answer in parts".into()));
            self.request_parts(peer, method, body, part).await
        } else {
            self.session(peer).await?.request(method, body).await
        }
    }

    pub async fn request_parts(
        &self,
        peer: PeerId,
        method: &str,
        body: Vec<u8>,
        take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<Vec<u8>, Failure> {
        let lane = self.lane(peer);
        let _place = lane.alone.acquire().await.map_err(|_| Failure::Stream("closing".into()))?;
        rr::request_alone(self.open(peer).await?, method, body, take).await
    }

    fn read_answer(method: &str, body: &[u8]) -> Result<Value, Failure> {
        let answer = cbor::decode(body, ITEMS_MAX)?;
        if let Some((_, shape)) = schema::method(method) {
            schema::check(&shape, &answer, method)?;
        }
        Ok(answer)
    }

    /// The answer to a request, of the shape that its method has.
    pub async fn ask(&self, peer: PeerId, method: &str, request: Value) -> Result<Value, Failure> {
        let body = timeout(TIMEOUT, self.request(peer, method, request.encode(), false)).await;
        Self::read_answer(method, &body.map_err(|_| Failure::Timeout)??)
    }

    /// A blob that is what its hash says; or its first bytes, which no hash vouches for.
    pub async fn fetch(&self, peer: PeerId, content_hash: &[u8], first: Option<i64>) -> Result<Vec<u8>, Failure> {
        let mut request = vec![("content_hash", cbor::bytes(content_hash))];
        request.extend(first.map(|length| ("length", Value::Int(length))));
        let mut blob = Vec::new();
        let take = |part: &[u8]| {
            blob.extend_from_slice(part);
            Ok(())
        };
        let last = self.request_parts(peer, "fetch_blob", map(request).encode(), take);
        let last = timeout(TIMEOUT * 6, last).await.map_err(|_| Failure::Timeout)??;
        let size = Self::read_answer("fetch_blob", &last)?.int("size")?;
        if first.is_none() {
            ensure(size == blob.len() as i64, "another size than was told")?;
            ensure(crypto::hash(&blob) == content_hash, "the bytes are not what their hash says")?;
        }
        Ok(blob)
    }

    pub async fn world_head(&self, peer: PeerId, world_id: &str) -> Result<Head, Failure> {
        let answer = self.ask(peer, "get_world_head", map([("world_id", cbor::text(world_id))])).await?;
        let head = answer.get("head").ok_or_else(|| Failure::NotFound("the peer has no head".into()))?;
        Ok(records::check_head(&head.encode(), Some(world_id))?)
    }

    /// Fetches a world's genesis, head and every height from one peer, checks them, and serves them from then on.
    pub async fn mirror(&self, peer: PeerId, world_id: &str) -> Result<i64, Failure> {
        let of_world = |more: Vec<(&'static str, Value)>| {
            let mut pairs = vec![("world_id", cbor::text(world_id))];
            pairs.extend(more);
            map(pairs)
        };
        let genesis = self.ask(peer, "get_genesis", of_world(vec![])).await?;
        let world = World::new(&genesis.at("genesis")?.encode())?;
        ensure(world.id == world_id, "the genesis is of another world")?;
        let head = self.world_head(peer, world_id).await?;
        ensure(head.height() <= HEIGHTS_MAX, "more heights than are kept here")?;
        // Down from the head first: nothing is kept that is not bound to it.
        let mut descent = Descent::new(&world, &head)?;
        while descent.wanted() > 0 {
            let from = (descent.wanted() - BLOCKS_AT_ONCE + 1).max(1);
            for block in self.blocks(peer, world_id, from, descent.wanted()).await?.into_iter().rev() {
                descent.push(block)?;
            }
        }
        let mut chain = descent.finish()?;
        for height in 1..=head.height() {
            let block = chain.steps[height as usize - 1].block.clone();
            let batch_blob = self.fetch(peer, block.bytes("batch_hash")?, None).await?;
            let batch = records::decode_preimage("batch", &batch_blob)?;
            let actions = self.fetch(peer, batch.bytes("actions_ref")?, None).await?;
            let receipts = self.fetch(peer, block.bytes("receipts_ref")?, None).await?;
            let events = self.fetch(peer, block.bytes("journal_ref")?, None).await?;
            let order = self.order(peer, of_world(vec![("height", Value::Int(height))])).await?;
            chain.take(height, &batch, order, &Lists { actions: &actions, receipts: &receipts, events: &events })?;
            for blob in [records::preimage("block", &block), batch_blob, actions, receipts, events] {
                self.library.put_blob(blob)?;
            }
        }
        let (steps, height) = (chain.steps, head.height());
        self.library.put_blob(records::preimage("genesis", world.genesis.at("header")?))?;
        self.library.put_blob(records::preimage("head", &head.value))?;
        self.library.add_world(world);
        self.library.add_mirror(Mirror { head, steps });
        self.provide(crypto::world_content_id(world_id)).await?;
        Ok(height)
    }

    /// Sealed batch and commit of a height; a peer need not keep those of heights long past.
    async fn order(&self, peer: PeerId, request: Value) -> Result<Option<(Value, Value)>, Failure> {
        match self.ask(peer, "get_batch", request).await {
            Ok(answer) => Ok(Some((answer.at("batch")?.clone(), answer.at("commit")?.clone()))),
            Err(Failure::Rr(error)) if error.code == NOT_FOUND => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The blocks of these heights. An answer may end before the last of them.
    async fn blocks(&self, peer: PeerId, world_id: &str, from: i64, to: i64) -> Result<Vec<Value>, Failure> {
        let mut blocks: Vec<Value> = Vec::new();
        loop {
            let next = from + blocks.len() as i64;
            if next > to {
                return Ok(blocks);
            }
            let (from_height, count) = (("from_height", Value::Int(next)), ("count", Value::Int(to + 1 - next)));
            let request = map([("world_id", cbor::text(world_id)), from_height, count]);
            let take = |part: &[u8]| {
                blocks.extend_from_slice(cbor::decode(part, ITEMS_MAX)?.items()?);
                ensure(blocks.len() as i64 <= to + 1 - from, "more blocks than were asked for").map_err(Failure::from)
            };
            let answer = self.request_parts(peer, "get_blocks", request.encode(), take);
            timeout(TIMEOUT * 6, answer).await.map_err(|_| Failure::Timeout)??;
            ensure(from + blocks.len() as i64 > next, "the peer does not hold the blocks below its head")?;
        }
    }

    /// Keeps a record here and puts it to the peers nearest to its key.
    pub async fn dht_put(&self, key: String, value: Vec<u8>) -> Result<(), Failure> {
        if !self.careless {
            dht::validate(key.as_bytes(), &value)?;
        }
        let start = move |kad: &mut kad::Behaviour<dht::HeadStore>| {
            let refused = |_| Failure::Refused("a newer head is held".into());
            kad.put_record(Record::new(key.into_bytes(), value), Quorum::One).map_err(refused)
        };
        // Nobody near who took it is no failure: it is held here, and put again.
        let mut results = self.net.query(start).await?;
        while results.recv().await.is_some() {}
        Ok(())
    }

    /// The newest valid head of all that were found; who gave an older one, or should have had one, gets it.
    pub async fn dht_get(&self, key: String) -> Result<Head, Failure> {
        let record_key = RecordKey::new(&key);
        let wanted = record_key.clone();
        let mut results = self.net.query(move |kad| Ok(kad.get_record(wanted))).await?;
        let (mut best, mut given, mut without) = (None::<Head>, Vec::new(), Vec::new());
        while let Some(result) = results.recv().await {
            match result {
                QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) => {
                    let Ok(head) = dht::validate(key.as_bytes(), &found.record.value) else { continue };
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
            self.net.query(move |kad| Ok(kad.put_record_to(record, behind.into_iter(), Quorum::One))).await?;
        }
        Ok(best)
    }

    pub async fn provide(&self, content_id: Hash) -> Result<(), Failure> {
        let key = RecordKey::new(&provider_key(&content_id));
        let full = |e: kad::store::Error| Failure::Refused(e.to_string());
        let mut results = self.net.query(move |kad| kad.start_providing(key).map_err(full)).await?;
        while results.recv().await.is_some() {}
        Ok(())
    }

    pub async fn find_providers(&self, content_id: &[u8]) -> Result<Vec<(PeerId, Vec<Multiaddr>)>, Failure> {
        let key = RecordKey::new(&provider_key(content_id));
        let mut results = self.net.query(move |kad| Ok(kad.get_providers(key))).await?;
        let mut peers = Vec::new();
        while let Some(result) = results.recv().await {
            if let QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) = result {
                peers.extend(providers);
            }
        }
        peers.sort();
        peers.dedup();
        let mut found = Vec::new();
        for peer in peers {
            let mut addresses = self.net.with(move |node| node.known_addresses(&peer)).await?;
            if addresses.is_empty() {
                addresses = self.look_up(peer).await?;
            }
            found.push((peer, addresses));
        }
        Ok(found)
    }

    /// Addresses of a peer, from those nearest to its id: an answer about providers tells only who they are.
    async fn look_up(&self, peer: PeerId) -> Result<Vec<Multiaddr>, Failure> {
        let mut results = self.net.query(move |kad| Ok(kad.get_n_closest_peers(peer, NonZeroUsize::MIN))).await?;
        let mut addresses = Vec::new();
        while let Some(result) = results.recv().await {
            if let QueryResult::GetClosestPeers(Ok(GetClosestPeersOk { peers, .. })) = result {
                addresses.extend(peers.into_iter().filter(|info| info.peer_id == peer).flat_map(|info| info.addrs));
            }
        }
        Ok(addresses)
    }
}
