"""From nothing but a world id to a verified, executable world.

Hides: the order of the steps. Guarantees: head and providers come from the DHT alone, the genesis is bound to the
world id, every block is executed here; the verdict names its trust, the epoch and the head's age.
Implements docs/protocol.md, section "Joining a world".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from p2p import names
from runtime import genesis as genesis_module
from runtime import rules
from runtime.errors import Ignored, Missing
from runtime.messages import GenesisAnswer, WorldRequest
from runtime.records import Genesis, WorldHeadAnnounce
from runtime.services.context import Context
from runtime.services.custody import bring_back
from runtime.services.fetch import Sources, ask_first
from runtime.services.follow import sync_to
from runtime.services.replica import Progress, Replica
from runtime.world_tables import WorldTables

TRUST = "replayed_from_genesis"


@dataclass(frozen=True, slots=True)
class VerifiedWorld:
    """A world that this process has executed from genesis up to a certified and attested head."""

    genesis: Genesis
    head: WorldHeadAnnounce
    replica: Replica
    head_age_ms: int
    trust: str = TRUST


async def fetch_genesis(sources: Sources) -> Genesis:
    """The genesis of a world known by its id only, from any provider. Raises Missing."""

    def check(answer: GenesisAnswer) -> None:
        genesis_module.check_genesis(answer.genesis, sources.world_id)

    request = WorldRequest(world_id=sources.world_id)
    return (await ask_first(sources, "get_genesis", request, GenesisAnswer, check)).genesis


async def head_from_dht(context: Context, world_id: str) -> WorldHeadAnnounce:
    """The best head that the DHT holds now. Raises Missing, or p2p errors."""
    record = await context.dht.get_record(names.head_key(world_id))
    if record is None:
        raise Missing("head", f"of world {world_id} in the DHT")
    head = rules.check_head_message(record, world_id)
    rules.check_head_is_not_future(head, context.now_ms())
    return head


async def bootstrap_world_from_dht(
    context: Context, world_id: str, progress: Progress, *, head_age_max_ms: int | None = None
) -> VerifiedWorld:
    """Find, fetch, execute, compare. Raises Missing (nobody has it), Ignored (head too old), Invalid, Diverged."""
    sources = Sources(context, world_id)
    head = await head_from_dht(context, world_id)
    age_ms = max(0, context.now_ms() - head.commit.record.as_of_ms)
    if head_age_max_ms is not None and age_ms > head_age_max_ms:
        raise Ignored(f"head is {age_ms} ms old, at most {head_age_max_ms} (head_age_max_ms)")
    genesis = await fetch_genesis(sources)
    replica = Replica(context, genesis, WorldTables(context.db, world_id), "verified")
    await replica.restore(progress, partial(bring_back, context, sources))
    if replica.height < head.commit.record.height:
        await sync_to(replica, head, sources, progress)
    return VerifiedWorld(genesis, head, replica, age_ms)
