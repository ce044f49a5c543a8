//! Fetching a whole world from one peer. Guarantees that nothing is kept or served that is not bound to a head whose seals
//! hold. Implements "Joining a world" of docs/protocol.md, without the replay.

use aw::cbor::{self, ITEMS_MAX, Value, ensure, map};
use aw::records;
use awnet::frames::NOT_FOUND;
use awnet::{Client, Failure, TIMEOUT};
use libp2p::PeerId;
use tokio::time::timeout;

use crate::Peer;
use crate::chain::{Descent, Lists};
use crate::library::Mirror;

const HEIGHTS_MAX: i64 = 100_000;
const BLOCKS_AT_ONCE: i64 = 256;

/// Fetches a world's genesis, head and every height from one peer, checks them, and serves them from then on.
pub async fn mirror(own: &Peer, peer: PeerId, world_id: &str) -> Result<i64, Failure> {
    let (client, library) = (&own.client, &own.library);
    let world = client.genesis(peer, world_id).await?;
    let head = client.world_head(peer, world_id).await?;
    if let Some(held) = library.mirror(world_id).filter(|held| held.head.order >= head.order) {
        return Ok(held.head.height());
    }
    ensure(head.height() <= HEIGHTS_MAX, "more heights than are kept here")?;
    // Down from the head first: nothing is kept that is not bound to it.
    let mut descent = Descent::new(&world, &head)?;
    while descent.wanted() > 0 {
        let from = (descent.wanted() - BLOCKS_AT_ONCE + 1).max(1);
        for block in blocks(client, peer, world_id, from, descent.wanted()).await?.into_iter().rev() {
            descent.push(block)?;
        }
    }
    let mut chain = descent.finish()?;
    for height in 1..=head.height() {
        let block = chain.steps[height as usize - 1].block.clone();
        let batch_blob = client.fetch(peer, block.bytes("batch_hash")?, None).await?;
        let batch = records::decode_preimage("batch", &batch_blob)?;
        let actions = client.fetch(peer, batch.bytes("actions_ref")?, None).await?;
        let receipts = client.fetch(peer, block.bytes("receipts_ref")?, None).await?;
        let events = client.fetch(peer, block.bytes("journal_ref")?, None).await?;
        let order = order(client, peer, world_id, height).await?;
        chain.take(height, &batch, order, &Lists { actions: &actions, receipts: &receipts, events: &events })?;
        for blob in [records::preimage("block", &block), batch_blob, actions, receipts, events] {
            library.put_blob(blob)?;
        }
    }
    let steps = chain.steps;
    library.put_blob(records::preimage("genesis", world.genesis.at("header")?))?;
    library.put_blob(records::preimage("head", &head.value))?;
    let world = library.add_world(world)?;
    Ok(library.add_mirror(Mirror { world, head, steps })?)
}

/// Sealed batch and commit of a height; a peer need not keep those of heights long past.
async fn order(client: &Client, peer: PeerId, world_id: &str, height: i64) -> Result<Option<(Value, Value)>, Failure> {
    let request = map([("world_id", cbor::text(world_id)), ("height", Value::Int(height))]);
    match client.ask(peer, "get_batch", request).await {
        Ok(answer) => Ok(Some((answer.at("batch")?.clone(), answer.at("commit")?.clone()))),
        Err(Failure::Rr(error)) if error.code == NOT_FOUND => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The blocks of these heights. An answer may end before the last of them.
async fn blocks(client: &Client, peer: PeerId, world_id: &str, from: i64, to: i64) -> Result<Vec<Value>, Failure> {
    let mut blocks: Vec<Value> = Vec::new();
    loop {
        let next = from + blocks.len() as i64;
        if next > to {
            return Ok(blocks);
        }
        let (from_height, count) = (("from_height", Value::Int(next)), ("count", Value::Int(to + 1 - next)));
        let request = map([("world_id", cbor::text(world_id)), from_height, count]);
        let take = |part: &[u8]| {
            blocks.extend_from_slice(cbor::decode(part, ITEMS_MAX)?.items()?);
            ensure(blocks.len() as i64 <= to + 1 - from, "more blocks than were asked for").map_err(Failure::from)
        };
        let answer = client.request_parts(peer, "get_blocks", request.encode(), take);
        timeout(TIMEOUT * 6, answer).await.map_err(|_| Failure::Timeout)??;
        ensure(from + blocks.len() as i64 > next, "the peer does not hold the blocks below its head")?;
    }
}
