//! What the DHT may hold: heads that pass their check, the newest of each world, and providers by BLAKE3 multihash; of
//! what others put the oldest goes where there is no room. As a record store it refuses a put where libp2p would first
//! overwrite and then acknowledge it. Implements "DHT" of docs/protocol.md.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::store::{Error, MemoryStore, MemoryStoreConfig, RecordStore, Result as Stored};
use libp2p::kad::{self, ProviderRecord, Record, RecordKey};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use aw::crypto::MULTIHASH_PREFIX;

use super::validate;

const RECORD_MAX: usize = 8_192;
pub(super) const ADDRESSES_MAX: usize = 16;
const RECORDS_MAX: usize = 4_096;
const PROVIDED_KEYS_MAX: usize = 65_536;
const PROVIDERS_PER_KEY_MAX: usize = 20;
const PUTS_PER_PERIOD_MAX: u32 = 500;
const PERIOD: Duration = Duration::from_secs(10);

/// Keys that others put, in the order in which they last did.
#[derive(Default)]
struct Ages {
    newest: u64,
    ages: HashMap<RecordKey, u64>,
    keys: BTreeMap<u64, RecordKey>,
}

impl Ages {
    /// Makes this key the newest, and gives the oldest where it has to go.
    fn renew(&mut self, key: &RecordKey, most: usize) -> Option<RecordKey> {
        self.forget(key);
        self.newest += 1;
        self.ages.insert(key.clone(), self.newest);
        self.keys.insert(self.newest, key.clone());
        let oldest = self.keys.first_entry().filter(|_| self.ages.len() > most)?.remove();
        self.ages.remove(&oldest);
        Some(oldest)
    }

    fn forget(&mut self, key: &RecordKey) {
        if let Some(age) = self.ages.remove(key) {
            self.keys.remove(&age);
        }
    }
}

pub(crate) struct HeadStore {
    inner: MemoryStore,
    /// When each record was put last, by whomever.
    put_at: HashMap<RecordKey, Instant>,
    own: PeerId,
    records: Ages,
    provided: Ages,
    /// Whose record is being taken: a put does not say from whom it came. None: this peer's own.
    source: Option<PeerId>,
    /// How much each peer put in this period, and since when it runs.
    puts: (Instant, HashMap<PeerId, u32>),
    /// Takes everything: for the peer that plays the liar.
    careless: bool,
}

impl HeadStore {
    pub fn new(own: PeerId, careless: bool) -> Self {
        // Twice what others may put: the rest is this peer's own, which never has to go.
        let config = MemoryStoreConfig {
            max_records: 2 * RECORDS_MAX,
            max_value_bytes: RECORD_MAX + 1,
            max_providers_per_key: PROVIDERS_PER_KEY_MAX,
            max_provided_keys: 2 * PROVIDED_KEYS_MAX,
        };
        let (inner, puts) = (MemoryStore::with_config(own, config), (Instant::now(), HashMap::new()));
        let (records, provided) = (Ages::default(), Ages::default());
        HeadStore { inner, put_at: HashMap::new(), own, records, provided, source: None, puts, careless }
    }

    /// How long ago a record that is held was put last.
    pub fn age(&self, key: &RecordKey) -> Duration {
        self.put_at.get(key).map(Instant::elapsed).unwrap_or_default()
    }

    /// Whether the source may put once more in this period.
    fn admits(&mut self) -> bool {
        let Some(source) = self.source else { return true };
        if self.puts.0.elapsed() >= PERIOD {
            self.puts = (Instant::now(), HashMap::new());
        }
        let count = self.puts.1.entry(source).or_default();
        *count += 1;
        *count <= PUTS_PER_PERIOD_MAX
    }

    /// A newer head, or the same one again, which refreshes it.
    pub fn accepts(&self, record: &Record) -> bool {
        if self.careless {
            return true;
        }
        let Ok(head) = validate(record.key.as_ref(), &record.value) else { return false };
        let held = self.inner.get(&record.key).and_then(|held| validate(held.key.as_ref(), &held.value).ok());
        held.is_none_or(|held| held.order <= head.order)
    }
}

impl RecordStore for HeadStore {
    type RecordsIter<'a> = <MemoryStore as RecordStore>::RecordsIter<'a>;
    type ProvidedIter<'a> = <MemoryStore as RecordStore>::ProvidedIter<'a>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        self.inner.get(key)
    }

    fn put(&mut self, record: Record) -> Stored<()> {
        if !self.admits() || !self.accepts(&record) {
            // libp2p has no error for a refusal; with any error it resets the stream instead of acknowledging.
            return Err(Error::ValueTooLarge);
        }
        let key = record.key.clone();
        self.inner.put(record)?;
        self.put_at.insert(key.clone(), Instant::now());
        if self.source.is_some()
            && let Some(oldest) = self.records.renew(&key, RECORDS_MAX)
        {
            self.remove(&oldest);
        }
        Ok(())
    }

    fn remove(&mut self, key: &RecordKey) {
        self.records.forget(key);
        self.put_at.remove(key);
        self.inner.remove(key);
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        self.inner.records()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Stored<()> {
        let multihash = record.key.as_ref().strip_prefix(&MULTIHASH_PREFIX).is_some_and(|hash| hash.len() == 32);
        if !multihash || !self.admits() {
            return Err(Error::ValueTooLarge);
        }
        record.addresses.truncate(ADDRESSES_MAX);
        let (key, held) = (record.key.clone(), self.inner.providers(&record.key));
        if held.len() == PROVIDERS_PER_KEY_MAX && held.iter().all(|other| other.provider != record.provider) {
            // The memory store would leave out the newcomer; who has not said it again for longest goes instead.
            let oldest = held.iter().filter(|other| other.provider != self.own).min_by_key(|other| other.expires);
            oldest.inspect(|oldest| self.inner.remove_provider(&key, &oldest.provider));
        }
        self.inner.add_provider(record)?;
        if self.source.is_some()
            && let Some(oldest) = self.provided.renew(&key, PROVIDED_KEYS_MAX)
        {
            for other in self.inner.providers(&oldest).iter().filter(|other| other.provider != self.own) {
                self.inner.remove_provider(&oldest, &other.provider);
            }
        }
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.inner.providers(key)
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.inner.provided()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        self.inner.remove_provider(key, provider);
    }
}

/// Kademlia, whose store knows from whom a record comes.
pub(crate) struct Behaviour(pub kad::Behaviour<HeadStore>);

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = THandler<kad::Behaviour<HeadStore>>;
    type ToSwarm = kad::Event;

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.0.store_mut().source = Some(peer);
        self.0.on_connection_handler_event(peer, id, event);
        self.0.store_mut().source = None;
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.0.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        self.0.on_swarm_event(event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<kad::Event, THandlerInEvent<Self>>> {
        self.0.poll(cx)
    }
}
