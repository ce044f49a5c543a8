"""What 1,000 blocks of one move each take on the disk of an executor: its blobs, and its whole data dir.

The blocks are applied one by one by the node's own Replica, each a durable transaction; the head is kept after each.
The peer keeps one file for each blob, as a plain content-addressed store does; du counts its blocks of 4 KiB.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import workload
from benchmarks.harness import Options, Peer, Row, main, progress, spread
from p2p.memory import InMemoryHub
from p2p.providers import ProviderCache
from runtime import chain, codec, world
from runtime.keys import SigningKey
from runtime.records import (
    ActionBatch,
    BlockAttestation,
    Commit,
    Envelope,
    SignedAuthorities,
    WorldHeadAnnounce,
    encode_envelopes,
    seal,
)
from runtime.services import HeadRecords
from runtime.services.context import Context
from runtime.services.replica import Applied, Replica
from runtime.world_db import LmdbWorldDb
from runtime.world_tables import WorldTables

T = TypeVar("T")
CREATED_MS = 1_700_000_000_000
BLOCKS = 1_000
FILES = Peer("a file for each blob", "")


async def _at_once(work: Callable[[], T]) -> T:
    return work()


async def rows(options: Options) -> list[Row]:
    """Bytes of blobs, and of the data dir, in MB."""
    blocks = BLOCKS // 10 if options.quick else BLOCKS
    with tempfile.TemporaryDirectory(prefix="aw-bench-disk-") as directory:
        ours, files = (Path(tempfile.mkdtemp(dir=directory)) for _ in range(2))
        blobs = await _apply(ours, files, blocks)
        whole, theirs = _on_disk(ours), _on_disk(files)
    what = f"{blocks:,} blocks of one move"
    return [
        Row(
            "disk-blobs",
            f"{what}: blobs",
            "MB",
            spread([blobs / 1e6]),
            FILES,
            spread([theirs / 1e6]),
            1,
            "ours < 5",
        ),
        Row(
            "disk-data",
            f"{what}: data dir",
            "MB",
            spread([whole / 1e6]),
            FILES,
            spread([theirs / 1e6]),
            1,
            "ours < 10",
        ),
    ]


def _on_disk(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


async def _apply(directory: Path, files: Path, blocks: int) -> int:
    """Apply the blocks; gives the bytes of all blobs."""
    key = workload.key("leader")
    genesis = workload.make_genesis(key.identity, key.identity, CREATED_MS)
    work = workload.Workload(genesis.header.world_id, CREATED_MS, actors=1)
    db, rng = LmdbWorldDb(directory), random.Random(1)
    hub = InMemoryHub(rng)
    async with hub.open_node(key.identity, {}, HeadRecords()) as (network, dht):
        context = Context(
            network, dht, ProviderCache(key.identity, rng), db, key, lambda: CREATED_MS, rng, _at_once
        )
        tables = WorldTables(db, genesis.header.world_id)
        replica = Replica(context, genesis, tables, "executed")
        first = 0
        batches = [work.registrations(), *([envelope] for envelope in work.envelopes(blocks, 1))]
        for number, envelopes in enumerate(batches):
            applied = _block(replica, key, envelopes)
            await replica.apply(applied)
            db.commit(tables.put_head(_head(replica, key, applied)))
            if not number:
                first = sum(map(len, applied.blobs))
                continue
            for blob in applied.blobs:
                (files / codec.content_id(blob).hex()).write_bytes(blob)
            if number % 200 == 0:
                progress(f"disk: {number} of {blocks} blocks")
        # The first block made the agents; it is not one of a single move.
        total = sum(db.blobs.stat(content_id).size for content_id in db.blobs.iterate()) - first
        db.close()
    return total


def _block(replica: Replica, key: SigningKey, envelopes: list[Envelope]) -> Applied:
    tip = replica.tip
    assert tip is not None
    actions = encode_envelopes(envelopes)
    batch = ActionBatch(
        world_id=replica.world_id,
        epoch=0,
        term=1,
        height=tip.height + 1,
        prev_batch_hash=tip.batch_hash,
        envelope_count=len(envelopes),
        actions_root=codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
        actions_ref=codec.content_id(actions),
        proposer_id=key.identity,
        timestamp_ms=CREATED_MS,
    )
    built = chain.build_block(replica.genesis, tip, batch, envelopes, world.check_signatures(envelopes))
    assert all(world.was_taken([receipt]) for receipt in built.outcome.receipts)
    return Applied(
        block=built.block,
        batch=batch,
        envelopes=tuple(envelopes),
        receipts=built.outcome.receipts,
        blobs=(*built.blobs.values(), batch.preimage(), actions),
        tip=built.tip,
    )


def _head(replica: Replica, key: SigningKey, applied: Applied) -> WorldHeadAnnounce:
    commit = Commit(
        world_id=replica.world_id,
        epoch=0,
        term=1,
        height=applied.block.height,
        batch_hash=applied.block.batch_hash,
        certifier_id=key.identity,
        as_of_ms=CREATED_MS,
    )
    attestation = BlockAttestation(
        world_id=replica.world_id,
        epoch=0,
        height=applied.block.height,
        block_hash=applied.block.hash(),
        executor_id=key.identity,
    )
    return WorldHeadAnnounce(
        header=replica.genesis.header,
        authorities=SignedAuthorities(replica.genesis.authorities),
        commit=seal(commit, key),
        attestations=(seal(attestation, key),),
        block_hash=applied.block.hash(),
    )


if __name__ == "__main__":
    main(rows)
