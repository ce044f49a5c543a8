"""What must hold in every run, whatever went wrong: each check has a name, and a text that says who broke it.

Hides: what was seen so far. Guarantees: the first broken check is kept and ends the run; nothing here changes what
the nodes do. Called by the ports (what leaves a node, what it writes) and at every tick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from bootstrap.simulation.ports import Disk
from bootstrap.world_node import WorldNode
from p2p.network import Gauge
from runtime import cells, codec, limits, messages, rules
from runtime.errors import Missing
from runtime.records import (
    ActionBatch,
    BlockAnnounce,
    Commit,
    Envelope,
    Genesis,
    Sealed,
    WorldBlock,
    WorldHeadAnnounce,
    sealed_from_bytes,
)
from runtime.world_db import Put, Row, Table
from runtime.world_tables import WorldTables

CURSORS: Final = ("executed", "verified", "stored")
LIMITS: Final[dict[str, int]] = {}  # gauge -> a limit that is tighter than its own
TASKS_PER_NODE_MAX: Final = 250  # of trio, all included: more than that is a leak
STREAMS_PER_NODE_MAX: Final = 100
# Everybody is honest here, so nobody may be found false, and no handler may fail by a bug.
BLAME: Final = (
    "rr.handler_bug", "gossip.check_bug", "gossip.rejected", "rr.bad_frame", "fetch.false_answer", "head.false",
    "head.false_answer", "follow.false_head", "follow.diverged", "executor.foreign_commit",
)  # fmt: skip


class Checks:
    """The checks of one run. `failure` is the first one broken; `failed` is set then."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._world_id = genesis.header.world_id
        self._certifier = genesis.authorities.certifier
        self.failure: str | None = None
        self.failed = trio.Event()
        self.disks: dict[str, Disk] = {}
        self._tables: dict[str, WorldTables] = {}
        self._commits: dict[tuple[int, int], tuple[Commit, str]] = {}
        self._blocks: dict[int, tuple[bytes, str]] = {}
        self._seen: set[bytes] = set()
        self._checked: Counter[tuple[str, str]] = Counter()  # (node, cursor) -> height whose work was found
        self._ledger_height = 0
        self._totals = Counter(dict.fromkeys(genesis.body.resource_kinds, 0))
        for _actor, kind, amount in genesis.body.balances:
            self._totals[kind] += amount
        self.proposers: dict[int, bytes] = {}  # height -> who proposed its committed batch
        self.limits = dict(LIMITS)
        self.accepted: dict[bytes, str] = {}  # envelope hash -> gateway that has signed an acceptance

    def add(self, node: str) -> Disk:
        """The disk of a node, watched."""
        self.disks[node] = Disk(node, self)
        self._tables[node] = WorldTables(self.disks[node], self._world_id)
        return self.disks[node]

    def tables(self, node: str) -> WorldTables:
        """What a node has on disk, for reading."""
        return self._tables[node]

    def fail(self, check: str, text: str) -> None:
        """A check is broken; only the first one counts."""
        if self.failure is None:
            self.failure = f"{check}: {text}"
            self.failed.set()

    def _require(self, check: str, holds: bool, text: str) -> None:
        if not holds:
            self.fail(check, text)

    # --- what leaves a node, and what it writes -------------------------------------------------------------

    def _is_new(self, node: str, kind: str, data: bytes) -> bool:
        mark = codec.content_id(f"{node} {kind} ".encode() + data)
        if mark in self._seen:
            return False
        self._seen.add(mark)
        return True

    def asked(self, node: str, method: str, body: bytes) -> None:
        """A node is about to send a request."""
        if method == "commit_batch":
            request = messages.CommitBatchRequest.from_bytes(body)
            self._saw(node, request.commit)
            blobs = self.disks[node].blobs
            durable = blobs.has(request.batch.hash()) and blobs.has(request.batch.record.actions_ref)
            self._require(
                "durable_first",
                durable,
                f"{node} proposes height {request.batch.record.height}, and it is not on its disk",
            )
        elif method == "lease_acquire":
            self._saw(node, messages.LeaseAcquireRequest.from_bytes(body).commit)
        elif method == "execute_batch" and self._is_new(node, method, body):
            self._saw(node, messages.ExecuteBatchRequest.from_bytes(body).commit)

    def answered(self, node: str, method: str, body: bytes) -> None:
        """A node is about to answer a request."""
        if not self._is_new(node, method, body):
            return
        if method == "submit_actions":
            self._accepted(node, messages.SubmitAnswer.from_bytes(body))
        elif method == "get_world_head":
            head = messages.HeadAnswer.from_bytes(body).head
            self._saw(node, None if head is None else head.commit)
        elif method == "get_batch":
            self._saw(node, messages.BatchAnswer.from_bytes(body).commit)
        elif method == "get_commit":
            self._answered_commit(node, messages.CommitAnswer.from_bytes(body).commit)
        elif method == "commit_batch":
            self._answered_commit(node, messages.CommitBatchAnswer.from_bytes(body).commit)
        elif method.startswith("lease_"):
            answer = messages.LeaseAnswer.from_bytes(body)
            self._answered_commit(node, answer.commit)
            stored = self._tables[node].lease()
            self._require(
                "durable_first",
                answer.lease is None or (stored is not None and stored.term >= answer.lease.record.term),
                f"{node} grants a lease that is not on its disk",
            )

    def _accepted(self, node: str, answer: messages.SubmitAnswer) -> None:
        for result in answer.results:
            if result.acceptance is not None:
                digest, tables = result.acceptance.record.envelope_hash, self._tables[node]
                self.accepted.setdefault(digest, node)
                durable = tables.outbox_entry(digest) is not None or tables.place(digest) is not None
                self._require(
                    "durable_first", durable, f"{node} accepts {digest.hex()[:16]}, and it is not on its disk"
                )

    def _answered_commit(self, node: str, commit: Sealed[Commit] | None) -> None:
        self._saw(node, commit)
        if commit is not None and self.disks[node].get(Table.LEASES, self._world_id.encode()) is not None:
            self._require(  # only the certifier's store holds leases
                "durable_first",
                self._tables[node].committed_height() >= commit.record.height,
                f"{node} answers with a commit of height {commit.record.height} that is not on its disk",
            )

    def published(self, node: str, kind: str, data: bytes) -> None:
        """A node is about to gossip, or to put a head into the DHT."""
        if kind == "batch":
            self._saw(node, rules.check_batch_message(data, self._world_id)[1])
        elif kind == "head":
            self._saw(node, WorldHeadAnnounce.from_bytes(data).commit)
        elif kind == "block":
            attestation = BlockAnnounce.from_bytes(data).attestation.record
            stored = self._tables[node].block_hash(attestation.height)
            self._require(
                "durable_first",
                stored == attestation.block_hash,
                f"{node} attests height {attestation.height}, and that block is not on its disk",
            )

    def wrote(self, node: str, rows: Sequence[Row]) -> None:
        """A node has written rows."""
        for row in rows:
            if not isinstance(row, Put):
                continue
            if row.table is Table.COMMITS:
                self._saw(node, sealed_from_bytes(Commit, row.value))
            elif row.table is Table.BATCHES:
                batch = sealed_from_bytes(ActionBatch, row.value).record
                self.proposers[batch.height] = batch.proposer_id
            elif row.table is Table.BLOCKS:
                self._agree(node, int.from_bytes(row.key[-8:], "big"), row.value)

    def _saw(self, node: str, commit: Sealed[Commit] | None) -> None:
        if commit is None:
            return
        record = commit.record
        first, where = self._commits.setdefault((record.epoch, record.height), (record, node))
        self._require(
            "one_commit",
            first.batch_hash == record.batch_hash,
            f"height {record.height} has two commits: {first.batch_hash.hex()[:16]} (term {first.term}, seen at"
            f" {where}) and {record.batch_hash.hex()[:16]} (term {record.term}, seen at {node})",
        )

    def _agree(self, node: str, height: int, block_hash: bytes) -> None:
        first, where = self._blocks.setdefault(height, (block_hash, node))
        self._require(
            "agreement",
            first == block_hash,
            f"height {height} is {first.hex()[:16]} at {where} and {block_hash.hex()[:16]} at {node}",
        )

    # --- at every tick --------------------------------------------------------------------------------------

    def tick(
        self, worlds: Mapping[str, WorldNode], used: Mapping[str, Sequence[Gauge]], streams: int
    ) -> None:
        """All that can be seen from outside at any moment."""
        for node, gauges in used.items():
            for gauge in gauges:
                limit = self.limits.get(gauge.name, gauge.limit_value if gauge.limit else None)
                self._require(
                    "bounds",
                    limit is None or gauge.value <= limit,
                    f"{node}: {gauge.name} is {gauge.value} of {limit}",
                )
        nodes = len(self.disks)
        tasks = trio.lowlevel.current_statistics().tasks_living
        self._require("bounds", tasks <= nodes * TASKS_PER_NODE_MAX, f"{tasks} tasks live, of {nodes} nodes")
        self._require("bounds", streams <= nodes * STREAMS_PER_NODE_MAX, f"{streams} streams are open")
        for node in self.disks:
            self._cursors(node, worlds.get(node))
        for world in worlds.values():
            self._balances(world)

    def blame(self, node: str, *counters: Mapping[str, int]) -> None:
        """Nobody lies here: whoever found somebody false, or failed by a bug, is wrong."""
        for some in counters:
            for name in BLAME:
                if some.get(name):
                    self.fail("no_blame", f"{node} counts {some[name]} {name}")

    def _cursors(self, node: str, world: WorldNode | None) -> None:
        tables, blobs = self._tables[node], self.disks[node].blobs
        for cursor in CURSORS:
            last = tables.cursor(cursor)
            for height in range(self._checked[node, cursor] + 1, last + 1):
                block_hash = tables.block_hash(height)
                try:
                    block = WorldBlock.from_preimage(blobs.get(block_hash or b""))
                    batch = ActionBatch.from_preimage(blobs.get(block.batch_hash))
                    blobs.get(batch.actions_ref)
                    blobs.get(block.receipts_ref)
                except Missing as missing:
                    self.fail("cursors", f"{node} is at {cursor} {last}, but at height {height} {missing}")
            self._checked[node, cursor] = last
            if world is not None and world.replica is not None and world.replica.cursor == cursor:
                self._require(
                    "cursors",
                    world.replica.height <= last,
                    f"{node} says {cursor} {world.replica.height}, its disk says {last}",
                )
        committed = tables.committed_height()
        for height in range(self._checked[node, "committed"] + 1, committed + 1):
            batch_row = tables.batch(height)
            held = batch_row is not None and blobs.has(batch_row.record.actions_ref)
            self._require("cursors", held, f"{node} has committed {committed} and not the batch of {height}")
        self._checked[node, "committed"] = committed

    def _balances(self, world: WorldNode) -> None:
        replica = world.replica
        if replica is None:
            return
        for height in range(self._ledger_height + 1, replica.height + 1):
            tip = replica.tip_at(height)
            if tip is None:
                continue
            sums: Counter[str] = Counter()
            for key, value in tip.state.items(cells.LEDGER):
                _holder_kind, holder, kind = codec.decode(key, limits.KEY_BYTES_MAX, "ledger key")
                amount = cells.decode_amount(value)
                sums[kind] += amount
                self._require("balances", amount > 0, f"height {height}: {holder!r} holds {amount} {kind}")
            self._require("balances", sums == self._totals, f"height {height}: {sums}, not {self._totals}")
            self._ledger_height = height

    # --- at the end -----------------------------------------------------------------------------------------

    def is_settled(self, node: str, envelope: Envelope) -> bool:
        """Whether the node's verified blocks have taken the envelope, or prove that none ever will."""
        tables, record = self._tables[node], envelope.record
        place = tables.place(envelope.hash())
        if place is not None and place.taken:
            return True
        height = max(tables.cursor(cursor) for cursor in CURSORS)
        return record.expires_at_height <= height or record.nonce < tables.nonce(record.actor_id)

    def is_taken(self, node: str, envelope: Envelope) -> bool:
        """Whether a verified block has taken it."""
        place = self._tables[node].place(envelope.hash())
        return place is not None and place.taken

    def heights(self, worlds: Mapping[str, WorldNode]) -> dict[str, int]:
        """Where every node is."""
        return {
            node: world.replica.height for node, world in sorted(worlds.items()) if world.replica is not None
        }

    def committed(self) -> int:
        """The highest commit that anybody has seen."""
        return max((height for _epoch, height in self._commits), default=0)
