//! The verdict that every relay gives on a message before it forwards it; no I/O. Implements "Gossip" of
//! docs/protocol.md.

use crate::cbor::{self, Bad, ITEMS_MAX, Result, Value, ensure, refuse};
use crate::records;
use crate::schema::{self, EVIDENCE, EVIDENCE_ITEM, Shape};

const KINDS: [&str; 6] = ["action", "batch", "block", "head", "event", "evidence"];
const MESSAGE_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Accept,
    Ignore,
    Reject,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Accept => "accept",
            Verdict::Ignore => "ignore",
            Verdict::Reject => "reject",
        }
    }
}

pub fn topic(world_id: &str, kind: &str) -> String {
    format!("aw.{world_id}.{kind}")
}

/// World id and kind of a topic.
pub fn parse_topic(topic: &str) -> Option<(&str, &str)> {
    let (world_id, kind) = topic.strip_prefix("aw.")?.split_once('.')?;
    (schema::world_ok(world_id) && KINDS.contains(&kind)).then_some((world_id, kind))
}

/// The verdict, and why where it is not accept. `envelope_bytes_max` is the genesis' limit.
pub fn judge(topic: &str, data: &[u8], envelope_bytes_max: usize) -> (Verdict, Option<Bad>) {
    match check(topic, data, envelope_bytes_max) {
        Ok(()) => (Verdict::Accept, None),
        Err(why @ Bad::Ignored(_)) => (Verdict::Ignore, Some(why)),
        Err(why @ Bad::Refused(_)) => (Verdict::Reject, Some(why)),
    }
}

/// All records of a message are decoded, in their order, before any is judged further: the first that is malformed or of
/// another version decides alike wherever it is judged.
fn check(topic: &str, data: &[u8], envelope_bytes_max: usize) -> Result<()> {
    let Some((world_id, kind)) = parse_topic(topic) else { return Err(Bad::Ignored("no topic of a world".into())) };
    ensure(data.len() <= MESSAGE_MAX, "the message is too large")?;
    match kind {
        "action" => check_action(world_id, data, envelope_bytes_max),
        "batch" => {
            let (sealed_batch, sealed_commit) = pair(data)?;
            let batch = records::unseal("batch", &sealed_batch)?;
            let commit = records::unseal("commit", &sealed_commit)?;
            ensure(batch.text("world_id")? == world_id, "batch: of another world")?;
            records::same(batch, commit, &["world_id", "height"])?;
            ensure(commit.bytes("batch_hash")? == records::hash("batch", batch), "commit: of another batch")?;
            records::verify("batch", &sealed_batch)?;
            records::verify("commit", &sealed_commit)
        }
        "block" => {
            let (block, sealed) = pair(data)?;
            schema::check(&Shape::Record("block"), &block, "block")?;
            let attestation = records::unseal("attestation", &sealed)?;
            ensure(block.text("world_id")? == world_id, "block: of another world")?;
            records::same(&block, attestation, &["world_id", "height"])?;
            let named = attestation.bytes("block_hash")? == records::hash("block", &block);
            ensure(named, "attestation: of another block")?;
            records::verify("attestation", &sealed)
        }
        "head" => records::check_head(data, Some(world_id)).map(|_| ()),
        "evidence" => {
            ensure(data.len() <= 512, "evidence: too large")?;
            let item = cbor::decode(data, ITEMS_MAX)?;
            schema::check(&EVIDENCE_ITEM, &item, "evidence")?;
            let kind = item.text("kind")?;
            if EVIDENCE.contains(&kind) { Ok(()) } else { Err(Bad::Ignored(format!("evidence of kind {kind}"))) }
        }
        _ => Err(Bad::Ignored("the topic is not in this version".into())),
    }
}

fn check_action(world_id: &str, data: &[u8], envelope_bytes_max: usize) -> Result<()> {
    ensure(data.len() <= 61_440, "actions: too large")?;
    let message = cbor::decode(data, 8_192)?;
    let seals = message.items()?;
    ensure((1..=16).contains(&seals.len()), "actions: not 1..16 envelopes")?;
    let envelopes = seals.iter().map(|sealed| records::unseal("envelope", sealed)).collect::<Result<Vec<_>>>()?;
    for (sealed, envelope) in seals.iter().zip(envelopes) {
        ensure(envelope.text("world_id")? == world_id, "envelope: of another world")?;
        ensure(sealed.encode().len() <= envelope_bytes_max, "envelope: too large")?;
    }
    // The dear part comes last.
    seals.iter().try_for_each(|sealed| records::verify("envelope", sealed))
}

fn pair(data: &[u8]) -> Result<(Value, Value)> {
    match cbor::decode(data, ITEMS_MAX)? {
        Value::List(items) => match <[Value; 2]>::try_from(items) {
            Ok([first, second]) => Ok((first, second)),
            Err(_) => refuse("is no pair"),
        },
        _ => refuse("is no pair"),
    }
}
