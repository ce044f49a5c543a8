"""A world from one peer, whole: genesis, head, every block and every blob of every height, each checked.

Hides: the order of the questions. Guarantees: what is returned hash-links from the genesis to a checked head; batches
have the form, and lists the roots, that their blocks say. Nothing is executed, so the state roots are the executor's.
Implements docs/protocol.md, "Joining a world", without the replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from interop.py.serving import MirroredWorld
from p2p.errors import Code, RequestFailed
from runtime import chain, codec, limits
from runtime.batches import check_batch_form
from runtime.errors import Invalid, Missing
from runtime.messages import BatchAnswer, BatchRequest, BlocksRequest
from runtime.records import ActionBatch, Genesis, WorldBlock, WorldHeadAnnounce
from runtime.services.client import DistributedClient

HEIGHTS_MAX: Final = 100_000
LIST_BYTES_MAX: Final = 1 << 20


async def mirror(client: DistributedClient, world_id: str, keep: Callable[[bytes], bytes]) -> MirroredWorld:
    """Fetch, check, keep. Raises p2p errors, Missing, and Invalid for what is false."""
    genesis, head = await client.genesis(world_id), await client.head(world_id)
    if head is None:
        raise Missing("head", f"of world {world_id}")
    blocks = await _blocks(client, genesis, head)
    world = MirroredWorld(genesis, head, blocks)
    parent = (0, genesis.header.hash(), genesis.header.created_ms)
    for block in blocks:
        keep(block.preimage())
        preimage = await client.get_blob(block.batch_hash)
        batch = ActionBatch.from_preimage(preimage)
        actions = await client.get_blob(batch.actions_ref)
        check_batch_form(genesis, *parent, batch, actions)
        receipts, journal = (
            await client.get_blob(block.receipts_ref),
            await client.get_blob(block.journal_ref),
        )
        chain.check_lists(block, chain.decode_receipts(receipts), chain.decode_events(journal))
        for blob in (preimage, actions, receipts, journal):
            keep(blob)
        parent = (batch.height, block.batch_hash, batch.timestamp_ms)
        await _keep_order(client, world, block)
    return world


async def _blocks(client: DistributedClient, genesis: Genesis, head: WorldHeadAnnounce) -> list[WorldBlock]:
    """Blocks 1..head, each linking to the one before it, the last being the head's."""
    top = head.commit.record.height
    if top > HEIGHTS_MAX:
        raise Invalid("head.height", f"{top}, at most {HEIGHTS_MAX} here")
    blocks: list[WorldBlock] = []
    link = genesis.header.hash()
    while len(blocks) < top:
        count = min(limits.BLOCKS_PER_ANSWER_MAX, top - len(blocks))
        request = BlocksRequest(world_id=head.header.world_id, from_height=len(blocks) + 1, count=count)
        before = len(blocks)
        async with client.network.request_parts(client.peer, "get_blocks", request.to_bytes()) as answer:
            while (part := await answer.part()) is not None:
                listed = codec.decode(part, LIST_BYTES_MAX, "get_blocks")
                if type(listed) is not list:
                    raise Invalid("get_blocks", "must be lists of blocks")
                for value in listed:
                    block = WorldBlock.from_value(value)
                    if block.prev_block_hash != link or block.height != len(blocks) + 1:
                        raise Invalid("get_blocks", f"height {block.height} does not link to the one below")
                    blocks.append(block)
                    link = block.hash()
        if len(blocks) == before:
            raise Missing("blocks", f"above height {before}")
    if link != head.block_hash or len(blocks) != top:
        raise Invalid("get_blocks", "is not the chain of the head")
    return blocks


async def _keep_order(client: DistributedClient, world: MirroredWorld, block: WorldBlock) -> None:
    """The seals of a height, where the peer has them still: blocks and blobs do not need them."""
    request = BatchRequest(world_id=block.world_id, height=block.height)
    try:
        answer = await client.call("get_batch", request, BatchAnswer)
    except RequestFailed as failure:
        if failure.code is not Code.ERR_NOT_FOUND:
            raise
        return
    chain.check_commit(world.genesis.authorities, answer.commit, answer.batch.record, world_id=block.world_id)
    if answer.batch.hash() != block.batch_hash:
        raise Invalid("get_batch", f"is not the batch of block {block.height}")
    world.batches[block.height] = answer
