"""Which authority set is in force on this node, and whether its epoch is over by evidence.

Hides: the ways a set can arrive (the operator's file, a head, a peer's answer) and which one wins. Guarantees: a set
counts only with the signatures of the roots; the highest epoch is taken up, once it is on disk; of two sets of one
epoch the first is kept, and both are evidence. Every service asks here, none keeps a set of its own.
Implements docs/protocol.md, section "Authorities".
"""

from __future__ import annotations

import logging
from typing import Final, NoReturn

import trio

from p2p import names
from runtime.epoch_tables import EpochTables
from runtime.errors import Corrupt, Halted, StoreFull, WorldError
from runtime.evidence import AuthoritiesFork, Evidence, authorities_fork
from runtime.genesis import check_authorities
from runtime.records import AuthoritySet, Genesis, SignedAuthorities
from runtime.services.context import Context, Signal

STORE_FULL_RETRY_S: Final = 5.0
_log = logging.getLogger(__name__)


class Authorities:
    """One per world and node. `changed` wakes when a set is taken up, and when its epoch is halted."""

    def __init__(self, context: Context, genesis: Genesis, tables: EpochTables) -> None:
        """Begins with the set that was taken up last. Raises Corrupt when the stored one is not the roots'."""
        self._context = context
        self._genesis = genesis
        self._tables = tables
        self.changed = Signal()
        self.signed = tables.authorities() or SignedAuthorities(genesis.authorities)
        self.halted_by: Evidence | None = None
        self.fork: AuthoritiesFork | None = None  # for the keeper of evidence
        self._offered: SignedAuthorities | None = None
        self._arrived = Signal()
        try:
            check_authorities(genesis.header, self.signed)
        except WorldError as error:
            raise Corrupt(
                f"authority set of world {genesis.header.world_id}",
                str(error),
                "move db/ in the data directory away and start again",
            ) from error

    @property
    def current(self) -> AuthoritySet:
        """The set in force."""
        return self.signed.authorities

    @property
    def epoch(self) -> int:
        return self.current.epoch

    @property
    def is_halted(self) -> bool:
        """The epoch in force is over: sign nothing, advance nothing; serve, listen, take up a set."""
        return self.halted_by is not None

    def require_running(self) -> None:
        """Raise Halted where something would be signed or advanced in an epoch that is over."""
        if self.halted_by is not None:
            raise Halted(why_halted(self.halted_by))

    def halt(self, evidence: Evidence) -> None:
        """The epoch in force is over by this evidence, which was checked; of another epoch it changes nothing."""
        assert evidence.HALTS
        if evidence.epoch != self.epoch or self.is_halted:
            return
        self.halted_by = evidence
        self._context.counters["authorities.halted"] += 1
        _log.error("world %s: %s", self._genesis.header.world_id, why_halted(evidence))
        self.changed.wake()

    def offer(self, signed: SignedAuthorities) -> None:
        """Take a set for what its signatures say. Raises Invalid for one that the roots did not sign."""
        for known in (self.signed, self._offered):
            if known is not None and known.authorities.hash() == signed.authorities.hash():
                return
        if signed.authorities.epoch < self.epoch:
            return
        check_authorities(self._genesis.header, signed)
        for known in (self.signed, self._offered):
            if known is not None and known.authorities.epoch == signed.authorities.epoch:
                self._fork(known, signed)
                return
        if self._offered is None or self._offered.authorities.epoch < signed.authorities.epoch:
            self._offered = signed
            self._arrived.wake()

    def _fork(self, kept: SignedAuthorities, other: SignedAuthorities) -> None:
        """Two sets of one epoch: the first is kept, and neither is to be followed."""
        self.fork = authorities_fork(kept, other)
        self.halt(self.fork)
        self.changed.wake()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Take up what is offered, each set once it is on disk."""
        task_status.started()
        while True:
            offered = self._offered
            if offered is None:
                await self._arrived.wait()
                continue
            await self._take_up(offered)

    async def install(self, signed: SignedAuthorities) -> None:
        """Take up a set before anything runs. Raises Invalid for one that the roots did not sign."""
        self.offer(signed)
        if self._offered is not None:
            await self._take_up(self._offered)

    async def _take_up(self, signed: SignedAuthorities) -> None:
        rows = self._tables.put_authorities(signed)
        try:
            await self._context.offload(lambda: self._context.db.commit(rows))
        except StoreFull as error:
            self._context.counters["authorities.store_full"] += 1
            _log.error("epoch %d waits for space: %s", signed.authorities.epoch, error)
            await trio.sleep(STORE_FULL_RETRY_S)
            return
        if self._offered is signed:
            self._offered = None
        self.signed = signed
        self.halted_by = None
        if self.fork is not None and self.fork.epoch == signed.authorities.epoch:
            self.halted_by = self.fork
        self._context.counters["authorities.taken_up"] += 1
        _log.warning("world %s: epoch %d is in force", self._genesis.header.world_id, self.epoch)
        self.changed.wake()


def why_halted(evidence: Evidence) -> str:
    """One line for people: what was proved, against whom, and where to look."""
    who = "the root keys" if evidence.accused is None else names.peer_text(evidence.accused)
    return (
        f"{evidence.NAME} by {who} in epoch {evidence.epoch} at height {evidence.height}: only a new epoch goes on"
        f" (aw evidence show {evidence.hash().hex()})"
    )
