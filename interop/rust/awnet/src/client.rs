//! What is asked of other peers: requests, blobs, heads, proofs, submissions. Hides streams and sessions; guarantees that an
//! answer has the shape of its method, that a blob is what its hash says, and that whatever is proved was checked here before
//! it is returned. Implements the client side of "Methods" of docs/protocol.md.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aw::cbor::{self, ITEMS_MAX, Value, ensure, map};
use aw::crypto;
use aw::proofs::{self, ProvedCell, ProvedReceipts};
use aw::records::{self, Head};
use aw::schema;
use aw::world::World;
use libp2p::PeerId;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::net::Net;
use crate::session::{self, Failure, Session};
use crate::streams::Conduit;
use crate::wire::lock;

/// Streams of one request each to one peer, which serves 64: the session is one, and those that end count a while.
const ALONE_MAX: usize = 48;
const OPENING_MAX: usize = 16;
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The streams to one peer.
struct Lane {
    /// Locked while a new one is opened.
    session: Arc<tokio::sync::Mutex<Option<Arc<Session>>>>,
    alone: Semaphore,
}

impl Lane {
    fn has_session(&self) -> bool {
        self.session.try_lock().map_or(true, |session| session.as_ref().is_some_and(|session| session.is_fresh()))
    }
}

pub struct Client {
    pub net: Net,
    lanes: Mutex<HashMap<PeerId, Arc<Lane>>>,
    /// Streams being opened: a slow peer negotiates a few in time, but not hundreds at once.
    opening: Semaphore,
}

impl Client {
    pub fn new(net: Net) -> Self {
        Client { net, lanes: Mutex::default(), opening: Semaphore::new(OPENING_MAX) }
    }

    fn lane(&self, peer: PeerId) -> Arc<Lane> {
        let mut lanes = lock(&self.lanes);
        if !lanes.contains_key(&peer) {
            // Only those are kept that somebody uses, or that have a session, which ends with its connection.
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || lane.has_session());
        }
        let new = || Arc::new(Lane { session: Default::default(), alone: Semaphore::new(ALONE_MAX) });
        lanes.entry(peer).or_insert_with(new).clone()
    }

    /// A stream as it is.
    pub async fn open(&self, peer: PeerId) -> Result<Conduit, Failure> {
        let _turn = self.opening.acquire().await.expect("it is never closed");
        self.net.open(peer).await
    }

    async fn session(&self, peer: PeerId) -> Result<Arc<Session>, Failure> {
        let mut slot = self.lane(peer).session.clone().lock_owned().await;
        if let Some(session) = slot.as_ref().filter(|session| session.is_fresh()) {
            return Ok(session.clone());
        }
        let net = self.net.clone();
        // A caller who stops waiting leaves the stream to the next.
        let opened = tokio::spawn(async move {
            let session = Session::start(net.open(peer).await?);
            *slot = Some(session.clone());
            Ok(session)
        });
        opened.await.map_err(|fault| Failure::Fault(fault.to_string()))?
    }

    /// One request by its bytes: in the session with this peer, or on a stream of its own.
    pub async fn request(&self, peer: PeerId, method: &str, body: Vec<u8>, one_shot: bool) -> Result<Vec<u8>, Failure> {
        if one_shot {
            let part = |_: &[u8]| Err(Failure::Stream("an answer in parts".into()));
            return self.request_parts(peer, method, body, part).await;
        }
        loop {
            let session = self.session(peer).await?;
            // A session may end while this waits for a place in it: nothing was asked in it then.
            if let Some(place) = session.place().await {
                return session.request(place, method, body).await;
            }
        }
    }

    /// One request whose answer comes in parts: each goes to `take`, the last answer is returned.
    pub async fn request_parts(
        &self,
        peer: PeerId,
        method: &str,
        body: Vec<u8>,
        take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<Vec<u8>, Failure> {
        let lane = self.lane(peer);
        let _place = lane.alone.acquire().await.expect("it is never closed");
        session::request_alone(self.open(peer).await?, method, body, take).await
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
            let asked = first.is_none_or(|length| blob.len() as i64 <= length);
            ensure(asked, "more bytes than were asked for").map_err(Failure::from)
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

    pub async fn genesis(&self, peer: PeerId, world_id: &str) -> Result<World, Failure> {
        let answer = self.ask(peer, "get_genesis", map([("world_id", cbor::text(world_id))])).await?;
        let world = World::new(&answer.at("genesis")?.encode())?;
        ensure(world.id == world_id, "the genesis is of another world")?;
        Ok(world)
    }

    pub async fn world_head(&self, peer: PeerId, world_id: &str) -> Result<Head, Failure> {
        let answer = self.ask(peer, "get_world_head", map([("world_id", cbor::text(world_id))])).await?;
        let head = answer.get("head").ok_or_else(|| Failure::NotFound("the peer has no head".into()))?;
        Ok(records::check_head(&head.encode(), Some(world_id))?)
    }

    /// A cell of the state, or its absence, proved under a head.
    pub async fn state_proof(
        &self,
        peer: PeerId,
        world_id: &str,
        namespace: &str,
        key: &[u8],
    ) -> Result<ProvedCell, Failure> {
        let (world, namespaced) = (("world_id", cbor::text(world_id)), ("namespace", cbor::text(namespace)));
        let answer = self.ask(peer, "get_state_proof", map([world, namespaced, ("key", cbor::bytes(key))])).await?;
        Ok(proofs::check_state_answer(world_id, namespace, key, &answer)?)
    }

    /// All receipts of an envelope, proved under a head. NOT_FOUND while no block that the peer has took it.
    pub async fn receipts(
        &self,
        peer: PeerId,
        world_id: &str,
        envelope_hash: &[u8],
    ) -> Result<ProvedReceipts, Failure> {
        let request = map([("world_id", cbor::text(world_id)), ("envelope_hash", cbor::bytes(envelope_hash))]);
        let answer = self.ask(peer, "get_receipt", request).await?;
        Ok(proofs::check_receipt_answer(world_id, envelope_hash, &answer)?)
    }

    /// Hands a sealed envelope to a gateway. The result has its outcome; the acceptance of one that is accepted was checked.
    pub async fn submit(&self, gateway: PeerId, sealed: Value) -> Result<Value, Failure> {
        let envelope = records::unseal("envelope", &sealed)?;
        let (world_id, envelope_hash) = (envelope.text("world_id")?.to_owned(), records::hash("envelope", envelope));
        let request = map([("world_id", cbor::text(&world_id)), ("envelopes", Value::List(vec![sealed]))]);
        let answer = self.ask(gateway, "submit_actions", request).await?;
        let [result] = answer.list("results")? else { return Err(Failure::Refused("not one result".into())) };
        proofs::check_acceptance(&world_id, &envelope_hash, &gateway.to_bytes(), result)?;
        Ok(result.clone())
    }
}
