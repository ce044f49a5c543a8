//! What a light client can judge of a world without executing it: genesis, batches, blocks, proofs of state and
//! receipts, acceptances. No I/O. Implements "Genesis and world id", "Batch", "Block" and "State and proofs" of
//! docs/protocol.md.

use crate::cbor::{self, Bad, Result, Value, ensure, refuse};
use crate::crypto::{self, Hash};
use crate::merkle::{self, Peaks};
use crate::records::{self, Head};
use crate::schema::{self, Shape};
use crate::state;

const LIST_MAX: usize = 64 << 20;

pub struct World {
    pub id: String,
    pub header_hash: Hash,
    /// The genesis file.
    pub genesis: Value,
}

impl World {
    pub fn new(genesis: &[u8]) -> Result<World> {
        let genesis = records::decode("genesis_file", genesis)?;
        let header_hash = records::hash("genesis", genesis.at("header")?);
        Ok(World { id: crypto::world_id(&header_hash), header_hash, genesis })
    }

    pub fn limit(&self, name: &str) -> Result<usize> {
        Ok(self.genesis.at("body")?.at("limits")?.int(name)? as usize)
    }

    /// The state at height 0: the kernel's parameters and the initial balances.
    pub fn state_root(&self) -> Result<Hash> {
        let body = self.genesis.at("body")?;
        let limits = body.at("limits")?;
        let kernel = [
            (
                body,
                &["bounds", "max_move_cm", "resource_kinds", "checkpoint_interval", "max_block_gap_ms", "admission"][..],
            ),
            (limits, &["block_fuel_max", "agents_per_actor_max", "expiry_blocks_max", "action_skew_ms"][..]),
        ];
        let mut cells = Vec::new();
        for (values, names) in kernel {
            for name in names {
                cells.push(("kernel".to_owned(), name.as_bytes().to_vec(), values.at(name)?.encode()));
            }
        }
        for balance in body.list("balances")? {
            if let [owner, kind, amount @ Value::Int(1..)] = balance.items()? {
                let key = Value::List(vec![cbor::text("actor"), owner.clone(), kind.clone()]);
                cells.push(("ledger".to_owned(), key.encode(), amount.encode()));
            }
        }
        Ok(state::root(cells))
    }
}

/// Checks a blob that is a list of records: its content id, its Merkle root, each record.
fn check_list(blob: &[u8], content_id: &[u8], root: &[u8], record: &'static str) -> Result<()> {
    ensure(blob.len() <= LIST_MAX, "the list is too large")?;
    ensure(crypto::hash(blob) == content_id, "the list is not what its hash says")?;
    let mut peaks = Peaks::default();
    cbor::each_element(blob, |bytes, value| {
        peaks.push(bytes);
        schema::check(&Shape::Record(record), &value, record)
    })?;
    ensure(peaks.root() == root, "the list has another Merkle root")
}

/// A height as it is kept and served.
pub struct Step {
    pub block: Value,
    pub block_hash: Hash,
    /// Sealed batch and commit, where somebody still had them.
    pub order: Option<(Value, Value)>,
}

/// The blobs that a height names.
pub struct Lists<'a> {
    pub actions: &'a [u8],
    pub receipts: &'a [u8],
    pub events: &'a [u8],
}

/// The chain from height 1 up to a head, checked as it grows.
pub struct Chain<'a> {
    world: &'a World,
    head: &'a Head,
    history: Peaks,
    /// Hash and time of the last batch; at height 0 the header stands for it.
    parent: (Hash, i64),
    parent_block: Hash,
    pub steps: Vec<Step>,
}

impl<'a> Chain<'a> {
    pub fn new(world: &'a World, head: &'a Head) -> Result<Self> {
        ensure(head.world_id == world.id, "the head is of another world")?;
        let created_ms = world.genesis.at("header")?.int("created_ms")?;
        let parent = (world.header_hash, created_ms);
        let (history, steps) = (Peaks::default(), Vec::new());
        let mut chain = Chain { world, head, history, parent, parent_block: world.header_hash, steps };
        chain.check_resume()?;
        Ok(chain)
    }

    pub fn push(&mut self, block: Value, batch: Value, order: Option<(Value, Value)>, lists: &Lists) -> Result<()> {
        let height = self.steps.len() as i64 + 1;
        schema::check(&Shape::Record("block"), &block, "block")?;
        let at_height = block.text("world_id")? == self.world.id && block.int("height")? == height;
        ensure(at_height, "block: of another world or height")?;
        ensure(block.bytes("prev_block_hash")? == self.parent_block, "block: does not link to its parent")?;
        ensure(block.bytes("history_root")? == self.history.root(), "block: another history_root")?;
        ensure(block.bytes("batch_hash")? == records::hash("batch", &batch), "block: of another batch")?;
        records::same(&block, &batch, &["term", "proposer_id", "timestamp_ms"])?;
        if let Some((sealed_batch, sealed_commit)) = &order {
            self.check_order(&batch, sealed_batch, sealed_commit)?;
        }
        self.check_form(&batch, height, lists.actions)?;
        check_list(lists.receipts, block.bytes("receipts_ref")?, block.bytes("receipts_root")?, "receipt")?;
        check_list(lists.events, block.bytes("journal_ref")?, block.bytes("event_root")?, "event")?;
        let block_hash = records::hash("block", &block);
        self.history.push(&block_hash);
        self.parent_block = block_hash;
        let batch_hash = block.bytes("batch_hash")?.try_into().map_err(|_| Bad::Refused("no hash".into()))?;
        self.parent = (batch_hash, block.int("timestamp_ms")?);
        self.steps.push(Step { block, block_hash, order });
        self.check_resume()?;
        if height == self.head.height() {
            ensure(self.head.block_hash()? == block_hash, "the chain does not lead to the head's block")?;
            ensure(self.head.commit()?.bytes("batch_hash")? == self.parent.0, "the head's commit is of another batch")?;
        }
        Ok(())
    }

    /// The chain has the batch where the head's epoch resumed.
    fn check_resume(&mut self) -> Result<()> {
        match self.head.set()?.get("resume") {
            Some(resume) if resume.int("height")? == self.steps.len() as i64 => {
                ensure(resume.bytes("batch_hash")? == self.parent.0, "the chain is not the one that its epoch keeps")
            }
            _ => Ok(()),
        }
    }

    fn check_order(&self, batch: &Value, sealed_batch: &Value, sealed_commit: &Value) -> Result<()> {
        ensure(records::unseal("batch", sealed_batch)? == batch, "get_batch: another batch")?;
        // A committed batch whose seal nobody kept has zeros in its place, and is believed for its commit.
        if sealed_batch.items()?[1].as_bytes()? != [0; 64] {
            records::open("batch", sealed_batch)?;
        }
        let commit = records::open("commit", sealed_commit)?;
        records::same(commit, batch, &["world_id", "height", "term"])?;
        ensure(commit.bytes("batch_hash")? == records::hash("batch", batch), "commit: of another batch")?;
        // Commits of older epochs stay as they are: those batches are known by their hashes.
        let set = self.head.set()?;
        if commit.int("epoch")? == set.int("epoch")? {
            records::check_commit(&self.world.id, set, sealed_commit)?;
            let resumed = set.get("resume").is_some_and(|r| r.int("height") == commit.int("height"));
            let proposer = Value::Bytes(batch.bytes("proposer_id")?.to_vec());
            let ordinary = batch.int("epoch")? == commit.int("epoch")? && set.list("proposers")?.contains(&proposer);
            ensure(resumed || ordinary, "batch: of another epoch, or by no proposer of it")?;
        }
        Ok(())
    }

    fn check_form(&self, batch: &Value, height: i64, actions: &[u8]) -> Result<()> {
        let world = self.world;
        let (parent_hash, parent_ms) = self.parent;
        let placed = batch.text("world_id")? == world.id && batch.int("height")? == height;
        ensure(placed, "batch: of another world or height")?;
        ensure(batch.bytes("prev_batch_hash")? == parent_hash, "batch: does not link to its parent")?;
        ensure(batch.int("timestamp_ms")? >= parent_ms, "batch: older than its parent")?;
        ensure(actions.len() <= world.limit("batch_bytes_max")?, "batch: too many bytes")?;
        ensure(crypto::hash(actions) == batch.bytes("actions_ref")?, "batch: other actions")?;
        let (mut tree, mut hashes, mut count) = (Peaks::default(), std::collections::HashSet::new(), 0);
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
}

/// The head of an answer, and the block that it names.
fn check_head_and_block(world_id: &str, head: &Value, block: &Value) -> Result<Head> {
    let head = records::check_head(&head.encode(), Some(world_id))?;
    ensure(head.block_hash()? == records::hash("block", block), "the block is not the head's")?;
    records::same(block, head.commit()?, &["world_id", "height", "batch_hash", "term"])?;
    Ok(head)
}

/// Height, state root and the proved value of an answer to get_state_proof.
pub fn check_state_answer(
    world_id: &str,
    namespace: &str,
    key: &[u8],
    answer: &Value,
) -> Result<(i64, Vec<u8>, Option<Vec<u8>>)> {
    let block = answer.at("block")?;
    let head = check_head_and_block(world_id, answer.at("head")?, block)?;
    let root = block.bytes("state_root")?;
    let value = state::verify(root, namespace, key, answer.bytes("proof")?)?;
    Ok((head.height(), root.to_vec(), value))
}

fn path_of<'a>(holder: &'a Value, key: &str) -> Result<Vec<&'a [u8]>> {
    holder.list(key)?.iter().map(Value::as_bytes).collect()
}

/// Height, height of the head and (code, index) of each receipt of an answer to get_receipt.
pub fn check_receipt_answer(
    world_id: &str,
    envelope_hash: &[u8],
    answer: &Value,
) -> Result<(i64, i64, Vec<(String, Option<i64>)>)> {
    let (head_block, block) = (answer.at("head_block")?, answer.at("block")?);
    let head = check_head_and_block(world_id, answer.at("head")?, head_block)?;
    let (height, history) = (block.int("height")?, path_of(answer, "history_path")?);
    ensure(block.text("world_id")? == world_id, "the block is of another world")?;
    if height == head.height() {
        ensure(block == head_block && history.is_empty(), "the block is not the head's")?;
    } else {
        let (root, item) = (head_block.bytes("history_root")?, records::hash("block", block));
        merkle::verify(root, &item, (height - 1) as u64, (head.height() - 1) as u64, &history)?;
    }
    let (mut receipts, mut first, mut total) = (Vec::new(), None, None);
    for proved in answer.list("receipts")? {
        let (receipt, index, count) = (proved.at("receipt")?, proved.int("index")?, proved.int("count")?);
        let path = path_of(proved, "path")?;
        merkle::verify(block.bytes("receipts_root")?, &receipt.encode(), index as u64, count as u64, &path)?;
        ensure(receipt.bytes("envelope_hash")? == envelope_hash, "a receipt of another envelope")?;
        let follows = index == *first.get_or_insert(index) + receipts.len() as i64;
        ensure(follows && count == *total.get_or_insert(count), "the receipts do not lie side by side")?;
        let at = receipt.get("index").map(|_| receipt.int("index")).transpose()?;
        ensure(at.is_none_or(|at| at == receipts.len() as i64), "a receipt is left out")?;
        receipts.push((receipt.text("code")?.to_owned(), at));
    }
    Ok((height, head.height(), receipts))
}

/// The gateway's promise: there where the outcome is accepted, of this envelope, signed by the peer that was asked.
pub fn check_acceptance(world_id: &str, envelope_hash: &Hash, gateway: &[u8], result: &Value) -> Result<()> {
    if result.text("outcome")? != "accepted" {
        return Ok(());
    }
    let acceptance = records::open("acceptance", result.at("acceptance")?)?;
    let ours = acceptance.text("world_id")? == world_id && acceptance.bytes("envelope_hash")? == envelope_hash;
    ensure(ours, "acceptance: of another envelope")?;
    if acceptance.bytes("gateway_id")? == gateway { Ok(()) } else { refuse("acceptance: by another gateway") }
}
