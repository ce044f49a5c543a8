//! The chain of a world, down from a head and then height by height: guarantees that every block hangs on the head, and
//! that all a block names is what its hashes say. Executes nothing. Implements "Block" of docs/protocol.md.

use aw::blocks;
use aw::cbor::{Bad, Result, Value, ensure};
use aw::crypto::Hash;
use aw::merkle::Peaks;
use aw::records::{self, Head};
use aw::schema::{self, Shape};
use aw::world::{World, check_block};

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
        blocks::check_batch(self.world, height, self.last_batch(height - 1)?, batch, lists.actions)?;
        blocks::check_list(lists.receipts, block.bytes("receipts_ref")?, block.bytes("receipts_root")?, "receipt")?;
        blocks::check_list(lists.events, block.bytes("journal_ref")?, block.bytes("event_root")?, "event")?;
        if let Some((sealed_batch, sealed_commit)) = order
            && blocks::check_order(self.world, self.head, batch, &sealed_batch, &sealed_commit)?
        {
            self.steps[height as usize - 1].order = Some((sealed_batch, sealed_commit));
        }
        Ok(())
    }
}
