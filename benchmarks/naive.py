"""The naive side of end to end: what one writes first, on stock py-libp2p, with the same kernel and the same checks.

A writer takes one signed action by the library's one-shot request_response helper, checks the signature, executes it as
a batch and a block of its own, stores each blob as a file with an fsync of its own, hands the block to a reader by
another one-shot request, and answers. The reader, a process of its own, checks signature and form again, re-executes,
compares, stores the same way, answers. A client keeps CLIENTS requests under way.

It leaves out what ours also pays for: outbox, lease, certifier, commit, attestation, head, DHT, gossip, proofs. Nothing
is slowed down on purpose. `python -m benchmarks.naive writer|reader` are its processes; no p2p is imported anywhere.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.request_response import BytesCodec, RequestContext, RequestResponse
from multiaddr import Multiaddr

from benchmarks import workload
from benchmarks.harness import side
from benchmarks.side import obey, play, stay_stock
from benchmarks.stock import LISTEN, new_host, per_second
from runtime import chain, codec, world
from runtime.chain import Built
from runtime.records import ActionBatch, ActionEnvelope, Envelope, encode_envelopes, sealed_from_bytes

SUBMIT: Any = "/naive/submit/1"
BLOCK: Any = "/naive/block/1"
CLIENTS: Final = 32


class Chain:
    """The tip, and a directory with a file for each blob."""

    def __init__(self, directory: Path, created_ms: int) -> None:
        key = workload.key("naive writer")
        self.genesis = workload.make_genesis(key.identity, key.identity, created_ms)
        self.tip = chain.genesis_tip(self.genesis)
        self._directory = directory
        self._proposer = key.identity

    def batch_of(self, envelope: Envelope) -> tuple[ActionBatch, bytes]:
        """A batch of one."""
        actions = encode_envelopes([envelope])
        record = ActionBatch(
            world_id=self.genesis.header.world_id,
            epoch=0,
            term=1,
            height=self.tip.height + 1,
            prev_batch_hash=self.tip.batch_hash,
            envelope_count=1,
            actions_root=codec.merkle_root([envelope.to_bytes()]),
            actions_ref=codec.content_id(actions),
            proposer_id=self._proposer,
            timestamp_ms=max(envelope.record.timestamp_ms, self.tip.timestamp_ms),
        )
        return record, actions

    def execute(self, batch: ActionBatch, actions: bytes) -> Built:
        """Check, execute, store, move on."""
        tip = self.tip
        envelopes = chain.check_batch_form(
            self.genesis, tip.height, tip.batch_hash, tip.timestamp_ms, batch, actions
        )
        signatures = world.check_signatures(envelopes)
        assert all(signatures)
        built = chain.build_block(self.genesis, tip, batch, envelopes, signatures)
        assert world.was_taken(built.outcome.receipts)
        for name, data in (
            *built.blobs.items(),
            (batch.hash(), batch.preimage()),
            (batch.actions_ref, actions),
        ):
            self._store(name, data)
        self.tip = built.tip
        return built

    def _store(self, name: bytes, data: bytes) -> None:
        path = self._directory / name.hex()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


class Reader:
    """Takes blocks, replays them."""

    def __init__(self, held: Chain) -> None:
        self._chain = held

    async def handle(self, request: bytes, context: RequestContext) -> bytes:
        del context
        batch, actions, block_hash = codec.decode(request, 1 << 20, "block")
        built = self._chain.execute(ActionBatch.from_preimage(batch), actions)
        assert built.block.hash() == block_hash
        return b"verified"


class Writer:
    """Takes envelopes, one after the other: the state is one."""

    def __init__(self, held: Chain, helper: RequestResponse, reader: ID) -> None:
        self._chain = held
        self._helper = helper
        self._reader = reader
        self._turn = trio.Lock()

    async def handle(self, request: bytes, context: RequestContext) -> bytes:
        del context
        envelope = sealed_from_bytes(ActionEnvelope, request)
        envelope.verify()
        async with self._turn:
            batch, actions = self._chain.batch_of(envelope)
            built = self._chain.execute(batch, actions)
            told = codec.encode([batch.preimage(), actions, built.block.hash()])
            return await self._helper.send_request(self._reader, [BLOCK], told, BytesCodec())


async def run_node(role: str, created_ms: int, reader_addr: str) -> None:
    """Writer or reader, until stdin ends."""
    host = new_host(listens=True)
    helper = RequestResponse(host)
    with tempfile.TemporaryDirectory(prefix="aw-bench-naive-") as directory:
        held = Chain(Path(directory), created_ms)
        async with host.run([LISTEN]):
            if role == "reader":
                helper.set_handler(BLOCK, Reader(held).handle, BytesCodec())
            else:
                info = info_from_p2p_addr(Multiaddr(reader_addr))
                await host.connect(info)
                helper.set_handler(SUBMIT, Writer(held, helper, info.peer_id).handle, BytesCodec())

            async def addrs() -> list[str]:
                return [str(addr) for addr in host.get_addrs()]

            await obey({"addrs": addrs})
            stay_stock()
            with trio.move_on_after(5):
                await host.close()


class Client:
    """The commands: the same as our_world's."""

    def __init__(self, helper: RequestResponse, writer: ID, work: workload.Workload) -> None:
        self._helper = helper
        self._writer = writer
        self._work = work

    async def run(self, actions: int, per_envelope: int) -> float:
        """Actions a second, from the first byte handed in to the reader's last word."""
        assert per_envelope == 1, "one action per envelope: that is what is naive here"
        envelopes = self._work.envelopes(actions, 1)
        before = time.perf_counter()
        await self.verified(envelopes)
        return actions / (time.perf_counter() - before)

    async def verified(self, envelopes: list[Envelope]) -> None:
        """All handed in, CLIENTS at once. An actor's envelopes are not reordered: there are more actors than tasks."""
        waiting = iter(envelopes)

        async def once() -> None:
            data = next(waiting).to_bytes()
            assert await self._helper.send_request(self._writer, [SUBMIT], data, BytesCodec()) == b"verified"

        await per_second(len(envelopes), CLIENTS, once)


async def run_client() -> None:
    """Reader, writer, and who hands in, until stdin ends."""
    created_ms = time.time_ns() // 1_000_000
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(side("naive", "reader", str(created_ms)))
        reader_addr = (await reader.ask("addrs"))[0]
        writer = await stack.enter_async_context(side("naive", "writer", str(created_ms), reader_addr))
        host = new_host(listens=False)
        async with host.run([]):
            info = info_from_p2p_addr(Multiaddr((await writer.ask("addrs"))[0]))
            await host.connect(info)
            key = workload.key("naive writer").identity
            world_id = workload.make_genesis(key, key, created_ms).header.world_id
            work = workload.Workload(world_id, created_ms)
            client = Client(RequestResponse(host), info.peer_id, work)
            await client.verified(work.registrations())
            await obey({"run": client.run})
            stay_stock()
            with trio.move_on_after(5):
                await host.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        play(run_node, sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
    else:
        play(run_client)
