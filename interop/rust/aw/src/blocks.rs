//! What a block names, by its bytes: the lists, the batch and the batch's seals. Implements "Batch" of docs/protocol.md, and
//! the lists of "Block".

use std::collections::HashSet;

use crate::cbor::{self, Result, Value, ensure};
use crate::crypto;
use crate::merkle::Peaks;
use crate::records::{self, Head};
use crate::schema::{self, Shape};
use crate::world::World;

const LIST_MAX: usize = 64 << 20;

/// Checks a blob that is a list of records: its content id, its Merkle root, each record.
pub fn check_list(blob: &[u8], content_id: &[u8], root: &[u8], record: &'static str) -> Result<()> {
    ensure(blob.len() <= LIST_MAX, "the list is too large")?;
    ensure(crypto::hash(blob) == content_id, "the list is not what its hash says")?;
    let mut peaks = Peaks::default();
    cbor::each_element(blob, |bytes, value| {
        peaks.push(bytes);
        schema::check(&Shape::Record(record), &value, record)
    })?;
    ensure(peaks.root() == root, "the list has another Merkle root")
}

/// Checks the form of a height's batch and its actions. `parent`: hash and time of the batch below, or of the header.
pub fn check_batch(world: &World, height: i64, parent: (&[u8], i64), batch: &Value, actions: &[u8]) -> Result<()> {
    let placed = batch.text("world_id")? == world.id && batch.int("height")? == height;
    ensure(placed, "batch: of another world or height")?;
    ensure(batch.bytes("prev_batch_hash")? == parent.0, "batch: does not link to its parent")?;
    ensure(batch.int("timestamp_ms")? >= parent.1, "batch: older than its parent")?;
    ensure(actions.len() <= world.limit("batch_bytes_max")?, "batch: too many bytes")?;
    ensure(crypto::hash(actions) == batch.bytes("actions_ref")?, "batch: other actions")?;
    let (mut tree, mut hashes, mut count) = (Peaks::default(), HashSet::new(), 0);
    cbor::each_element(actions, |bytes, sealed| {
        let envelope = records::unseal("envelope", &sealed)?;
        ensure(envelope.text("world_id")? == world.id, "batch: an envelope of another world")?;
        ensure(bytes.len() <= world.limit("envelope_bytes_max")?, "batch: an envelope too large")?;
        ensure(hashes.insert(records::hash("envelope", envelope)), "batch: an envelope twice")?;
        count += envelope.list("actions")?.len();
        tree.push(bytes);
        Ok(())
    })?;
    ensure(hashes.len() <= world.limit("batch_envelopes_max")?, "batch: too many envelopes")?;
    ensure(count <= world.limit("batch_actions_max")?, "batch: too many actions")?;
    ensure(batch.int("envelope_count")? == hashes.len() as i64, "batch: another envelope_count")?;
    ensure(batch.bytes("actions_root")? == tree.root(), "batch: another actions_root")
}

/// Whether the authorities of a commit's epoch are known: the head's set is in force from where it resumed, that of the
/// genesis at most up to there. False seals are refused.
pub fn check_order(
    world: &World,
    head: &Head,
    batch: &Value,
    sealed_batch: &Value,
    sealed_commit: &Value,
) -> Result<bool> {
    ensure(records::unseal("batch", sealed_batch)? == batch, "get_batch: another batch")?;
    let commit = records::unseal("commit", sealed_commit)?;
    records::same(commit, batch, &["world_id", "height", "term"])?;
    ensure(commit.bytes("batch_hash")? == records::hash("batch", batch), "commit: of another batch")?;
    // A committed batch whose seal nobody kept has zeros in its place, and is believed for its commit.
    if sealed_batch.items()?[1].as_bytes()? != [0; 64] {
        records::verify("batch", sealed_batch)?;
    }
    let (first, newest) = (world.genesis.at("authorities")?, head.set()?);
    let (height, epoch) = (commit.int("height")?, commit.int("epoch")?);
    let resumed = newest.get("resume").map_or(Ok(0), |resume| resume.int("height"))?;
    let set = match epoch {
        _ if epoch == newest.int("epoch")? && height >= resumed => newest,
        0 if height <= resumed => first,
        _ => return Ok(false),
    };
    records::check_commit(&world.id, set, sealed_commit)?;
    // Only the batch from which an epoch resumes may be of an older one, by a proposer who has left.
    if set.get("resume").is_none() || height > resumed {
        let proposer = Value::Bytes(batch.bytes("proposer_id")?.to_vec());
        let ordinary = batch.int("epoch")? == epoch && set.list("proposers")?.contains(&proposer);
        ensure(ordinary, "batch: of another epoch, or by no proposer of it")?;
    }
    Ok(true)
}
