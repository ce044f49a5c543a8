//! An actor's wish, before and after it is signed. Guarantees that what is sealed here is of the shape that every node takes.
//! Implements the record of "Actions" of docs/protocol.md.

use crate::cbor::{self, Result, Value, map};
use crate::crypto::{self, Hash, SigningKey};
use crate::records;
use crate::schema::{self, Shape};

pub struct Envelope<'a> {
    pub world_id: &'a str,
    /// How many envelopes of the actor were taken before.
    pub nonce: i64,
    pub expires_at_height: i64,
    pub timestamp_ms: i64,
    /// All actions, or none.
    pub atomic: bool,
    /// A list of `[kind, payload]`.
    pub actions: Value,
}

impl Envelope<'_> {
    /// The envelope's hash, and the envelope sealed with its actor's key.
    pub fn seal(self, actor: &SigningKey) -> Result<(Hash, Value)> {
        let record = map([
            ("v", Value::Int(1)),
            ("world_id", cbor::text(self.world_id)),
            ("actor_id", cbor::bytes(crypto::key_id(actor))),
            ("nonce", Value::Int(self.nonce)),
            ("expires_at_height", Value::Int(self.expires_at_height)),
            ("timestamp_ms", Value::Int(self.timestamp_ms)),
            ("atomic", Value::Bool(self.atomic)),
            ("actions", self.actions),
        ]);
        schema::check(&Shape::Record("envelope"), &record, "envelope")?;
        Ok((records::hash("envelope", &record), records::seal("envelope", record, actor)))
    }
}
