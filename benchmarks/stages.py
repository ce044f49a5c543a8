"""Where the time of one action goes: CPU of each stage on its way, by action, with 16 and with 1 in an envelope.

Not a comparison, so no rows: `python -m benchmarks.stages` prints the table of docs/performance.md. One process, no
network; the caches that a node has are emptied between stages, so that each shows its whole price.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import workload
from runtime import chain, codec, keys, rules, world
from runtime.messages import SubmitRequest
from runtime.records import ActionBatch, Envelope, encode_envelopes
from runtime.world_db import LmdbWorldDb
from runtime.world_tables import WorldTables

T = TypeVar("T")
CREATED_MS = 1_700_000_000_000
ROUNDS = 5
CHUNK = 64


class Stages:
    """One world on its way, and the least CPU time that each stage took in any round."""

    def __init__(self, directory: Path, actions: int, per_envelope: int) -> None:
        key = workload.key("stages").identity
        self._genesis = workload.make_genesis(key, key, CREATED_MS)
        self._world_id = self._genesis.header.world_id
        self._work = workload.Workload(self._world_id, CREATED_MS)
        self._proposer = key
        self._tip = chain.genesis_tip(self._genesis)
        self._db = LmdbWorldDb(directory)
        self._tables = WorldTables(self._db, self._world_id)
        self._actions, self._per_envelope = actions, per_envelope
        self.least: dict[str, float] = {}
        registrations = self._work.registrations()
        batch, _actions = self._batch_of(registrations)
        signatures = [True] * len(registrations)
        self._tip = chain.build_block(self._genesis, self._tip, batch, registrations, signatures).tip

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        keys.verify.cache_clear()
        before = time.process_time()
        result = work()
        elapsed = time.process_time() - before
        self.least[stage] = min(self.least.get(stage, elapsed), elapsed)
        return result

    def _batch_of(self, envelopes: list[Envelope]) -> tuple[ActionBatch, bytes]:
        actions = encode_envelopes(envelopes)
        record = ActionBatch(
            world_id=self._world_id,
            epoch=0,
            term=1,
            height=self._tip.height + 1,
            prev_batch_hash=self._tip.batch_hash,
            envelope_count=len(envelopes),
            actions_root=codec.merkle_root([envelope.to_bytes() for envelope in envelopes]),
            actions_ref=codec.content_id(actions),
            proposer_id=self._proposer,
            timestamp_ms=CREATED_MS,
        )
        return record, actions

    def _check(self, envelopes: list[Envelope]) -> None:
        bytes_max = self._genesis.body.limits.envelope_bytes_max
        for envelope in envelopes:
            rules.check_envelope(envelope, self._world_id, bytes_max)

    def round(self) -> None:
        """One batch through all stages."""
        made = self._work.envelopes(self._actions, self._per_envelope)
        requests = [
            SubmitRequest(world_id=self._world_id, envelopes=tuple(chunk)).to_bytes()
            for chunk in workload.chunks(made, CHUNK)
        ]
        taken = self._timed(
            "gateway: read the requests", lambda: [SubmitRequest.from_bytes(r) for r in requests]
        )
        envelopes = [envelope for request in taken for envelope in request.envelopes]
        self._timed("gateway: check signatures and form", lambda: self._check(envelopes))
        self._timed(
            "gateway: keep in the outbox, fsync",
            lambda: self._db.commit(self._tables.put_outbox(envelopes, CREATED_MS)),
        )
        batch, actions = self._timed("sequencer: cut and hash a batch", lambda: self._batch_of(envelopes))
        tip = self._tip
        read = self._timed(
            "certifier, then executor, then observer: read and check the batch",
            lambda: chain.check_batch_form(
                self._genesis, tip.height, tip.batch_hash, tip.timestamp_ms, batch, actions
            ),
        )
        signatures = self._timed("executor, observer: check signatures", lambda: world.check_signatures(read))
        built = self._timed(
            "executor, observer: execute, receipts, events, roots",
            lambda: chain.build_block(self._genesis, tip, batch, read, signatures),
        )
        blobs = (*built.blobs.values(), batch.preimage(), actions)
        self._timed(
            "executor, observer: store, fsync",
            lambda: self._db.commit(
                self._tables.applied_rows("executed", built.block, read, built.outcome.receipts), blobs
            ),
        )
        self._db.commit(self._tables.drop_outbox(envelopes))
        self._tip = built.tip

    def close(self) -> None:
        self._db.close()


def measured(actions: int, per_envelope: int) -> dict[str, float]:
    """Microseconds of CPU per action, by stage."""
    with tempfile.TemporaryDirectory(prefix="aw-bench-stages-") as directory:
        stages = Stages(Path(directory), actions, per_envelope)
        for _ in range(ROUNDS):
            stages.round()
        stages.close()
    return {stage: seconds * 1e6 / actions for stage, seconds in stages.least.items()}


def run() -> None:
    """The table."""
    many, single = measured(8_192, 16), measured(512, 1)
    print("| stage | us per action, 16 in an envelope | us per action, 1 in an envelope |")
    print("|---|---|---|")
    for stage, micros in many.items():
        print(f"| {stage} | {micros:.1f} | {single[stage]:.1f} |")


if __name__ == "__main__":
    run()
