//! What the DHT may hold: heads that pass their check, the newest of each world, and providers by BLAKE3 multihash.
//! As a record store it refuses a put where libp2p would first overwrite and then acknowledge it. Implements "DHT" of
//! docs/protocol.md.

use std::borrow::Cow;

use libp2p::PeerId;
use libp2p::kad::store::{Error, MemoryStore, MemoryStoreConfig, RecordStore, Result as Stored};
use libp2p::kad::{ProviderRecord, Record, RecordKey};

use crate::cbor::{Result, refuse};
use crate::crypto::MULTIHASH_PREFIX;
use crate::records::{self, Head};
use crate::schema;

const RECORD_MAX: usize = 8_192;
const ADDRESSES_MAX: usize = 16;

pub fn head_key(world_id: &str) -> String {
    format!("/aw/world/{world_id}/head")
}

/// The validator: the head that a record holds.
pub fn validate(key: &[u8], value: &[u8]) -> Result<Head> {
    let text = std::str::from_utf8(key).ok();
    let world_id = text.and_then(|key| key.strip_prefix("/aw/world/")?.strip_suffix("/head"));
    match world_id.filter(|id| schema::world_ok(id)) {
        Some(world_id) => records::check_head(value, Some(world_id)),
        None => refuse("the key is none of a head"),
    }
}

pub struct HeadStore {
    inner: MemoryStore,
    /// Takes everything: for the peer that plays the liar.
    careless: bool,
}

impl HeadStore {
    pub fn new(peer: PeerId, careless: bool) -> Self {
        let config = MemoryStoreConfig {
            max_records: 4_096,
            max_value_bytes: RECORD_MAX + 1,
            max_providers_per_key: 20,
            max_provided_keys: 65_536,
        };
        HeadStore { inner: MemoryStore::with_config(peer, config), careless }
    }

    /// A newer head, or the same one again, which refreshes it.
    fn accepts(&self, record: &Record) -> bool {
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
        // libp2p has no error for a refusal; with any error it resets the stream instead of acknowledging.
        if self.careless || self.accepts(&record) { self.inner.put(record) } else { Err(Error::ValueTooLarge) }
    }

    fn remove(&mut self, key: &RecordKey) {
        self.inner.remove(key);
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        self.inner.records()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Stored<()> {
        let multihash = record.key.as_ref().strip_prefix(&MULTIHASH_PREFIX).is_some_and(|hash| hash.len() == 32);
        record.addresses.truncate(ADDRESSES_MAX);
        if multihash { self.inner.add_provider(record) } else { Err(Error::ValueTooLarge) }
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
