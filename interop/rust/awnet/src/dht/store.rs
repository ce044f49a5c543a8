//! What the DHT may hold: heads that pass their check, the newest of each world, and providers by BLAKE3 multihash.
//! Where there is no room the oldest record goes that others put, and the oldest provider record of whoever has most.
//! As a record store it refuses a put where libp2p would first overwrite and then acknowledge it. Implements "DHT" of
//! docs/protocol.md.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::mem::take;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::store::{Error, MemoryStore, MemoryStoreConfig, RecordStore, Result as Stored};
use libp2p::kad::{self, ProviderRecord, Record, RecordKey};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use aw::crypto::MULTIHASH_PREFIX;

use super::{as_told, validate};

const RECORD_MAX: usize = 8_192;
pub(super) const ADDRESSES_MAX: usize = 16;
const RECORDS_MAX: usize = 4_096;
const PROVIDED_KEYS_MAX: usize = 65_536;
const PROVIDER_RECORDS_MAX: usize = 16_384;
const PROVIDERS_PER_KEY_MAX: usize = 20;
const PUTS_PER_PERIOD_MAX: u32 = 500;
const PERIOD: Duration = Duration::from_secs(10);

/// An IPv4 address, or the first 56 bits of an IPv6 one. All that is neither counts as one.
type Network = Vec<u8>;

fn network_of(remote: &Multiaddr) -> Network {
    match remote.iter().next() {
        Some(Protocol::Ip4(address)) => address.octets().to_vec(),
        Some(Protocol::Ip6(address)) => address.octets()[..7].to_vec(),
        _ => Network::new(),
    }
}

/// A provider record: what, and by whom.
type Provided = (RecordKey, PeerId);

/// Counts by name, and a name of the highest one: of equal ones that which was changed longest ago.
struct Tally<T> {
    changes: u64,
    counts: HashMap<T, (usize, u64)>,
    order: BTreeMap<(usize, Reverse<u64>), T>,
}

impl<T> Default for Tally<T> {
    fn default() -> Self {
        Tally { changes: 0, counts: HashMap::new(), order: BTreeMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Tally<T> {
    fn change(&mut self, name: &T, by: isize) {
        let (before, changed) = self.counts.remove(name).unwrap_or_default();
        self.order.remove(&(before, Reverse(changed)));
        let after = before.saturating_add_signed(by);
        self.changes += 1;
        if after > 0 {
            self.counts.insert(name.clone(), (after, self.changes));
            self.order.insert((after, Reverse(self.changes)), name.clone());
        }
    }

    fn most(&self) -> Option<T> {
        self.order.values().next_back().cloned()
    }
}

/// Provider records of others, by whom has how many: who floods displaces himself.
#[derive(Default)]
struct Shares {
    newest: u64,
    told: HashMap<Provided, (Network, u64)>,
    networks: Tally<Network>,
    peers: HashMap<Network, Tally<PeerId>>,
    keys: HashMap<(Network, PeerId), BTreeMap<u64, RecordKey>>,
}

impl Shares {
    /// Makes this one the newest, and gives the one that has to go: of the network with most, of its peer with most,
    /// the oldest.
    fn renew(&mut self, record: Provided, network: Network) -> Option<Provided> {
        self.forget(&record);
        self.newest += 1;
        self.keys.entry((network.clone(), record.1)).or_default().insert(self.newest, record.0.clone());
        self.count(&network, &record.1, 1);
        self.told.insert(record, (network, self.newest));
        if self.told.len() <= PROVIDER_RECORDS_MAX {
            return None;
        }
        let network = self.networks.most()?;
        let peer = self.peers.get(&network)?.most()?;
        let oldest = self.keys.get(&(network, peer))?.values().next()?;
        Some((oldest.clone(), peer))
    }

    fn forget(&mut self, record: &Provided) {
        let Some((network, age)) = self.told.remove(record) else { return };
        let of = (network, record.1);
        if let Some(keys) = self.keys.get_mut(&of) {
            keys.remove(&age);
            if keys.is_empty() {
                self.keys.remove(&of);
            }
        }
        self.count(&of.0, &of.1, -1);
    }

    fn count(&mut self, network: &Network, peer: &PeerId, by: isize) {
        self.networks.change(network, by);
        let peers = self.peers.entry(network.clone()).or_default();
        peers.change(peer, by);
        if peers.counts.is_empty() {
            self.peers.remove(network);
        }
    }

    /// Of the providers of a key the one to go: the oldest of the network that has most there.
    fn least_worth(&self, key: &RecordKey, providers: impl Iterator<Item = PeerId>) -> Option<PeerId> {
        let told = providers.filter_map(|peer| Some((peer, self.told.get(&(key.clone(), peer))?)));
        let told: Vec<_> = told.collect();
        let in_network = |network| told.iter().filter(|(_, (other, _))| other == network).count();
        let first = told.iter().max_by_key(|(_, (network, age))| (in_network(network), Reverse(*age)))?;
        Some(first.0)
    }
}

/// Keys that others put, in the order in which they last did.
#[derive(Default)]
struct Ages {
    newest: u64,
    ages: HashMap<RecordKey, u64>,
    keys: BTreeMap<u64, RecordKey>,
}

impl Ages {
    /// Makes this key the newest, and gives the oldest where it has to go.
    fn renew(&mut self, key: &RecordKey) -> Option<RecordKey> {
        self.forget(key);
        self.newest += 1;
        self.ages.insert(key.clone(), self.newest);
        self.keys.insert(self.newest, key.clone());
        let oldest = self.keys.first_entry().filter(|_| self.ages.len() > RECORDS_MAX)?.remove();
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
    records: Ages,
    provided: Shares,
    /// Whose record is being taken, and from where: a put does not say from whom it came. None: this peer's own.
    source: Option<(PeerId, Network)>,
    /// How much each peer put in this period, and since when it runs.
    puts: (Instant, HashMap<PeerId, u32>),
    /// Takes everything: for the peer that plays the liar.
    careless: bool,
}

impl HeadStore {
    pub fn new(own: PeerId, careless: bool) -> Self {
        // Above what others may put there is room for this peer's own, which never has to go.
        let config = MemoryStoreConfig {
            max_records: 2 * RECORDS_MAX,
            max_value_bytes: RECORD_MAX + 1,
            max_providers_per_key: PROVIDERS_PER_KEY_MAX,
            max_provided_keys: PROVIDED_KEYS_MAX + PROVIDER_RECORDS_MAX + 1,
        };
        let (inner, puts) = (MemoryStore::with_config(own, config), (Instant::now(), HashMap::new()));
        let (records, provided) = (Ages::default(), Shares::default());
        HeadStore { inner, put_at: HashMap::new(), records, provided, source: None, puts, careless }
    }

    /// How long ago a record that is held was put last.
    pub fn age(&self, key: &RecordKey) -> Duration {
        self.put_at.get(key).map(Instant::elapsed).unwrap_or_default()
    }

    /// Whether the source may put once more in this period.
    fn admits(&mut self) -> bool {
        let Some((source, _)) = self.source else { return true };
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
            && let Some(oldest) = self.records.renew(&key)
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
        let provider = record.provider;
        record.addresses = as_told(take(&mut record.addresses), &provider);
        let (key, held) = (record.key.clone(), self.inner.providers(&record.key));
        if held.len() == PROVIDERS_PER_KEY_MAX && held.iter().all(|other| other.provider != provider) {
            // The memory store would leave out the newcomer.
            let gone = self.provided.least_worth(&key, held.iter().map(|other| other.provider));
            gone.inspect(|gone| self.remove_provider(&key, gone));
        }
        self.inner.add_provider(record)?;
        if let Some((_, network)) = self.source.clone()
            && let Some((key, peer)) = self.provided.renew((key, provider), network)
        {
            self.remove_provider(&key, &peer);
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
        self.provided.forget(&(key.clone(), *provider));
        self.inner.remove_provider(key, provider);
    }
}

/// Kademlia, whose store knows from whom a record comes, and from which network: beside it the one of each connection.
pub(crate) struct Behaviour(pub kad::Behaviour<HeadStore>, HashMap<ConnectionId, Network>);

impl Behaviour {
    pub fn new(kad: kad::Behaviour<HeadStore>) -> Self {
        Behaviour(kad, HashMap::new())
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = THandler<kad::Behaviour<HeadStore>>;
    type ToSwarm = kad::Event;

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.0.store_mut().source = Some((peer, self.1.get(&id).cloned().unwrap_or_default()));
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
        match &event {
            FromSwarm::ConnectionEstablished(to) => {
                self.1.insert(to.connection_id, network_of(to.endpoint.get_remote_address()));
            }
            FromSwarm::ConnectionClosed(to) => {
                self.1.remove(&to.connection_id);
            }
            _ => {}
        }
        self.0.on_swarm_event(event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<kad::Event, THandlerInEvent<Self>>> {
        self.0.poll(cx)
    }
}
