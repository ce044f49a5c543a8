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
    /// Sealed batch and commit, where somebody still had them and their epoch's authorities are known here.
    pub order: Option<(Value, Value)>,
}

/// The blobs that a height names.
pub struct Lists<'a> {
    pub actions: &'a [u8],
    pub receipts: &'a [u8],
    pub events: &'a [u8],
}

/// The way from a head down to height 1: a block is taken only where the one above it, or the head, names its hash.
pub struct Descent<'a> {
    world: &'a World,
    head: &'a Head,
    wanted: (i64, Vec<u8>),
    /// The newest first.
    steps: Vec<Step>,
}

impl<'a> Descent<'a> {
    pub fn new(world: &'a World, head: &'a Head) -> Result<Self> {
        ensure(head.world_id == world.id, "the head is of another world")?;
        let wanted = (head.height(), head.block_hash()?.to_vec());
        Ok(Descent { world, head, wanted, steps: Vec::new() })
    }

    /// The height of the next block, 0 when all are here.
    pub fn wanted(&self) -> i64 {
        self.wanted.0
    }

    pub fn push(&mut self, block: Value) -> Result<()> {
        let (height, named) = &self.wanted;
        let block_hash = records::hash("block", &block);
        ensure(block_hash == named.as_slice(), "block: another one than the block above it, or the head, names")?;
        schema::check(&Shape::Record("block"), &block, "block")?;
        check_block(&self.world.id, &block)?;
        ensure(block.int("height")? == *height, "block: of another height")?;
        if *height == self.head.height() {
            records::same(&block, self.head.commit()?, &["batch_hash", "term"])?;
        }
        self.wanted = (height - 1, block.bytes("prev_block_hash")?.to_vec());
        self.steps.push(Step { block, block_hash, order: None });
        Ok(())
    }

    /// The chain, which is the one that the head's epoch keeps.
    pub fn finish(self) -> Result<Chain<'a>> {
        let Descent { world, head, wanted, mut steps } = self;
        ensure(wanted == (0, world.header_hash.to_vec()), "the chain does not begin at the genesis")?;
        steps.reverse();
        let mut history = Peaks::default();
        for Step { block, block_hash, .. } in &steps {
            ensure(block.bytes("history_root")? == history.root(), "block: another history_root")?;
            history.push(block_hash);
        }
        let chain = Chain { world, head, steps };
        if let Some(resume) = head.set()?.get("resume") {
            let (kept, _) = chain.last_batch(resume.int("height")?)?;
            ensure(resume.bytes("batch_hash")? == kept, "the chain is not the one that its epoch keeps")?;
        }
        Ok(chain)
    }
}

/// The blocks from height 1 up to a head, bound to it; what they name is checked height by height.
pub struct Chain<'a> {
    world: &'a World,
    head: &'a Head,
    pub steps: Vec<Step>,
}

impl Chain<'_> {
    fn block(&self, height: i64) -> Result<&Value> {
        let step = usize::try_from(height - 1).ok().and_then(|at| self.steps.get(at));
        step.map(|step| &step.block).ok_or_else(|| Bad::Refused("the chain has no such height".into()))
    }

    /// Hash and time of a height's batch; at height 0 the header stands for it.
    fn last_batch(&self, height: i64) -> Result<(&[u8], i64)> {
        if height == 0 {
            return Ok((&self.world.header_hash, self.world.genesis.at("header")?.int("created_ms")?));
        }
        let block = self.block(height)?;
        Ok((block.bytes("batch_hash")?, block.int("timestamp_ms")?))
    }

    /// Checks what the block of a height names, and keeps the height's seals where they may be kept.
    pub fn take(&mut self, height: i64, batch: &Value, order: Option<(Value, Value)>, lists: &Lists) -> Result<()> {
        let block = self.block(height)?;
        ensure(block.bytes("batch_hash")? == records::hash("batch", batch), "block: of another batch")?;
        records::same(block, batch, &["term", "proposer_id", "timestamp_ms"])?;
        self.check_form(batch, height, lists.actions)?;
        check_list(lists.receipts, block.bytes("receipts_ref")?, block.bytes("receipts_root")?, "receipt")?;
        check_list(lists.events, block.bytes("journal_ref")?, block.bytes("event_root")?, "event")?;
        if let Some((sealed_batch, sealed_commit)) = order
            && self.check_order(batch, &sealed_batch, &sealed_commit)?
        {
            self.steps[height as usize - 1].order = Some((sealed_batch, sealed_commit));
        }
        Ok(())
    }

    /// Whether the authorities of a commit's epoch are known: the head's set is in force from where it resumed, that of
    /// the genesis at most up to there. False seals are refused.
    fn check_order(&self, batch: &Value, sealed_batch: &Value, sealed_commit: &Value) -> Result<bool> {
        ensure(records::unseal("batch", sealed_batch)? == batch, "get_batch: another batch")?;
        let commit = records::unseal("commit", sealed_commit)?;
        records::same(commit, batch, &["world_id", "height", "term"])?;
        ensure(commit.bytes("batch_hash")? == records::hash("batch", batch), "commit: of another batch")?;
        // A committed batch whose seal nobody kept has zeros in its place, and is believed for its commit.
        if sealed_batch.items()?[1].as_bytes()? != [0; 64] {
            records::verify("batch", sealed_batch)?;
        }
        let (first, newest) = (self.world.genesis.at("authorities")?, self.head.set()?);
        let (height, epoch) = (commit.int("height")?, commit.int("epoch")?);
        let resumed = newest.get("resume").map_or(Ok(0), |resume| resume.int("height"))?;
        let set = match epoch {
            _ if epoch == newest.int("epoch")? && height >= resumed => newest,
            0 if height <= resumed => first,
            _ => return Ok(false),
        };
        records::check_commit(&self.world.id, set, sealed_commit)?;
        // Only the batch from which an epoch resumes may be of an older one, by a proposer who has left.
        if set.get("resume").is_none() || height > resumed {
            let proposer = Value::Bytes(batch.bytes("proposer_id")?.to_vec());
            let ordinary = batch.int("epoch")? == epoch && set.list("proposers")?.contains(&proposer);
            ensure(ordinary, "batch: of another epoch, or by no proposer of it")?;
        }
        Ok(true)
    }

    fn check_form(&self, batch: &Value, height: i64, actions: &[u8]) -> Result<()> {
        let world = self.world;
        let (parent_hash, parent_ms) = self.last_batch(height - 1)?;
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

/// What every block of a valid chain has in common.
fn check_block(world_id: &str, block: &Value) -> Result<()> {
    ensure(block.text("world_id")? == world_id, "block: of another world")?;
    ensure(block.get("manifest_hash").is_none(), "block: no valid chain has a manifest_hash")
}

/// The head of an answer, and the block that it names.
fn check_head_and_block(world_id: &str, head: &Value, block: &Value) -> Result<Head> {
    let head = records::check_head(&head.encode(), Some(world_id))?;
    check_block(world_id, block)?;
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

/// A receipt, its index and the count of its block's list, in which it is proved to lie.
fn check_proved<'a>(block: &Value, proved: &'a Value) -> Result<(&'a Value, i64, i64)> {
    let (receipt, index, count) = (proved.at("receipt")?, proved.int("index")?, proved.int("count")?);
    let path = path_of(proved, "path")?;
    merkle::verify(block.bytes("receipts_root")?, &receipt.encode(), index as u64, count as u64, &path)?;
    Ok((receipt, index, count))
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
    check_block(world_id, block)?;
    if height == head.height() {
        ensure(block == head_block && history.is_empty(), "the block is not the head's")?;
    } else {
        let (root, item) = (head_block.bytes("history_root")?, records::hash("block", block));
        merkle::verify(root, &item, (height - 1) as u64, (head.height() - 1) as u64, &history)?;
    }
    let (listed, mut receipts) = (answer.list("receipts")?, Vec::new());
    let (first, count) = (listed[0].int("index")?, listed[0].int("count")?);
    for (number, proved) in (0..).zip(listed) {
        let (receipt, index, of) = check_proved(block, proved)?;
        ensure(receipt.bytes("envelope_hash")? == envelope_hash, "a receipt of another envelope")?;
        ensure((index, of) == (first + number, count), "the receipts do not lie side by side")?;
        let at = receipt.get("index").map(|_| receipt.int("index")).transpose()?;
        let whole = at == Some(number) || at.is_none() && listed.len() == 1;
        ensure(whole, "neither one receipt without index, nor indexes 0..n-1")?;
        receipts.push((receipt.text("code")?.to_owned(), at));
    }
    // What lies behind the last is of another envelope, or the last is the list's: so none is left out.
    let behind = first + listed.len() as i64;
    match answer.get("after") {
        None => ensure(behind == count, "the receipt behind the last is missing")?,
        Some(after) => {
            let (receipt, index, of) = check_proved(block, after)?;
            ensure((index, of) == (behind, count), "after: does not lie behind the last")?;
            ensure(receipt.bytes("envelope_hash")? != envelope_hash, "a receipt is left out")?;
        }
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
