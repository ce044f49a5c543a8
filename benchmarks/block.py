"""What a block costs as the world grows: 100 agents moved, among 10 thousand, 100 thousand and a million.

Execution, state root, receipts, events and their roots (`chain.build_block`), without signatures, disk and network. The
peer of each row is the same block among 10 thousand agents, so the ratio says how much dearer it is: fewer is better.
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks import workload
from benchmarks.harness import Options, Peer, Row, alternate, main
from runtime import cells, chain, codec
from runtime.keys import SigningKey
from runtime.records import ActionBatch, ActionEnvelope, Envelope, encode_envelopes, seal

CREATED_MS = 1_700_000_000_000
PER_ENVELOPE = 20
CHANGED = 100
SIZES = (10_000, 100_000, 1_000_000)


class Crowd:
    """A world with many agents of one actor, and blocks that move 100 of them."""

    def __init__(self, agents: int) -> None:
        self._key: SigningKey = workload.key("crowd")
        self._genesis = workload.make_genesis(self._key.identity, self._key.identity, CREATED_MS)
        tip = chain.genesis_tip(self._genesis)
        state = tip.state.update(
            {
                (cells.AGENTS, cells.agent_key(name)): cells.Agent(self._key.identity, 0, 0, 0).to_bytes()
                for name in map(self._name, range(agents))
            }
        )
        state.root()
        self._agents = agents
        self._tip = chain.Tip(
            tip.height, tip.block_hash, tip.batch_hash, tip.timestamp_ms, state, tip.history
        )
        self._moves = 0

    @staticmethod
    def _name(number: int) -> str:
        return f"agent-{number}"

    async def block(self) -> float:
        """Milliseconds of one block; the next builds on it."""
        nonce = cells.actor_nonce(self._tip.state, self._key.identity)
        envelopes = [self._envelope(nonce + index) for index in range(CHANGED // PER_ENVELOPE)]
        actions = encode_envelopes(envelopes)
        batch = ActionBatch(
            world_id=self._genesis.header.world_id,
            epoch=0,
            term=1,
            height=self._tip.height + 1,
            prev_batch_hash=self._tip.batch_hash,
            envelope_count=len(envelopes),
            actions_root=codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
            actions_ref=codec.content_id(actions),
            proposer_id=self._key.identity,
            timestamp_ms=CREATED_MS,
        )
        before = time.perf_counter()
        built = chain.build_block(self._genesis, self._tip, batch, envelopes, [True] * len(envelopes))
        elapsed = time.perf_counter() - before
        assert len(built.outcome.events) == CHANGED
        self._tip = built.tip
        return elapsed * 1_000

    def _envelope(self, nonce: int) -> Envelope:
        moves = []
        for _ in range(PER_ENVELOPE):
            self._moves += 1
            name = self._name(self._moves * 7_919 % self._agents)
            place = {"agent_id": name, "x_cm": self._moves, "y_cm": 0, "z_cm": 0}
            moves.append(("move_agent", place))
        record = ActionEnvelope(
            world_id=self._genesis.header.world_id,
            actor_id=self._key.identity,
            nonce=nonce,
            expires_at_height=self._tip.height + 100,
            timestamp_ms=CREATED_MS,
            atomic=False,
            actions=tuple(moves),
        )
        return seal(record, self._key)


async def rows(options: Options) -> list[Row]:
    """100 changed keys in ever larger worlds."""
    runs, sizes = (5, SIZES[:2]) if options.quick else (31, SIZES)
    small = Crowd(sizes[0])
    found = []
    for size in sizes[1:]:
        large = Crowd(size)
        name = f"block-{size // 1_000}k"
        ours, peers = await alternate(name, partial(large.block), partial(small.block), runs)
        what = f"block of {CHANGED} moves among {size:,} agents"
        peer = Peer(f"the same among {sizes[0]:,} agents", "")
        found.append(Row(name, what, "ms", ours, peer, peers, runs, "<= 4"))
    return found


if __name__ == "__main__":
    main(rows)
