"""The kernel's actions: for each kind its payload, its price in fuel, and what it does.

Hides: the rules of each action. Guarantees: a handler either refuses with a code and has written nothing, or
has written all of it and says what happened; whatever the payload is, no handler raises. No action creates or
destroys a resource. Integers only.

| action            | payload                                            | event               |
|-------------------|----------------------------------------------------|---------------------|
| register_agent    | agent_id, x_cm, y_cm, z_cm, endow?                 | AgentRegistered     |
| move_agent        | agent_id, x_cm, y_cm, z_cm                         | AgentMoved          |
| transfer_resource | kind, amount, from_agent?, to_agent or to_actor    | ResourceTransferred |

Implements docs/protocol.md, section "Actions".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from runtime import codec, limits
from runtime.cells import Actor, Agent, Draft, Holder, Parameters
from runtime.errors import Invalid
from runtime.schema import AMOUNT, NAME, Amount, Coordinate, KeyId, Kind, Name, Record


class Code(StrEnum):
    """Outcome of an envelope or an action, as receipts carry it."""

    APPLIED = "Applied"
    # The envelope as a whole; nothing of it is taken.
    BAD_SIGNATURE = "BadSignature"
    EXPIRED = "Expired"
    EXPIRY_TOO_FAR = "ExpiryTooFar"
    FROM_THE_FUTURE = "FromTheFuture"
    NONCE_MISMATCH = "NonceMismatch"
    # One action; its envelope is taken all the same.
    UNKNOWN_ACTION = "UnknownAction"
    BAD_PAYLOAD = "BadPayload"
    AGENT_EXISTS = "AgentExists"
    AGENT_NOT_FOUND = "AgentNotFound"
    NOT_AUTHORIZED = "NotAuthorized"
    OUT_OF_BOUNDS = "OutOfBounds"
    MOVE_TOO_FAR = "MoveTooFar"
    UNKNOWN_RESOURCE = "UnknownResource"
    INSUFFICIENT_RESOURCES = "InsufficientResources"
    AMOUNT_OVERFLOW = "AmountOverflow"
    TOO_MANY_AGENTS = "TooManyAgents"
    BLOCK_FUEL_EXHAUSTED = "BlockFuelExhausted"
    ATOMIC_ROLLED_BACK = "AtomicRolledBack"


# Fuel of an attempt, in units of roughly 10 ns. Consensus: with other numbers a replay gives other blocks.
FUEL_REGISTER_AGENT: Final = 4_000
FUEL_MOVE_AGENT: Final = 2_000
FUEL_TRANSFER_RESOURCE: Final = 2_500
FUEL_UNKNOWN_ACTION: Final = 500


# --- payloads ----------------------------------------------------------------------------------------------


def _check_endow(value: Any, field: str) -> None:
    if type(value) is not dict or not 1 <= len(value) <= limits.ENDOW_KINDS_MAX:
        raise Invalid(field, f"must be a map of 1..{limits.ENDOW_KINDS_MAX} resource kinds")
    for kind, amount in value.items():
        NAME.check(kind, field)
        AMOUNT.check(amount, f"{field}.{kind}")


class Payload(Record):
    """Base of payloads: a closed map without `v`."""

    __slots__ = ()
    BYTES_MAX: ClassVar[int] = limits.ACTION_PAYLOAD_BYTES_MAX
    VERSIONED: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class RegisterAgent(Payload):
    """A new agent of the acting actor; `endow` {kind: amount} comes from the actor's balance."""

    NAME: ClassVar[str] = "register_agent"

    agent_id: Name
    x_cm: Coordinate
    y_cm: Coordinate
    z_cm: Coordinate
    endow: Annotated[dict[str, int], Kind(_check_endow)] | None = None


@dataclass(frozen=True, slots=True)
class MoveAgent(Payload):
    """To a place at most max_move_cm away in a straight line."""

    NAME: ClassVar[str] = "move_agent"

    agent_id: Name
    x_cm: Coordinate
    y_cm: Coordinate
    z_cm: Coordinate


@dataclass(frozen=True, slots=True)
class TransferResource(Payload):
    """From an agent of the actor's, or from the actor itself; to exactly one agent or actor."""

    NAME: ClassVar[str] = "transfer_resource"

    kind: Name
    amount: Amount
    from_agent: Name | None = None
    to_agent: Name | None = None
    to_actor: KeyId | None = None

    def check(self) -> None:
        if (self.to_agent is None) == (self.to_actor is None):
            raise Invalid("transfer_resource", "needs exactly one of to_agent and to_actor")


# --- handlers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Happened:
    """An applied action's event."""

    kind: str
    data: dict[str, codec.Value]


Result: TypeAlias = Happened | Code
Place: TypeAlias = RegisterAgent | MoveAgent


def _is_out_of_bounds(place: Place, parameters: Parameters) -> bool:
    box = parameters.bounds
    return not (
        box.x_min_cm <= place.x_cm <= box.x_max_cm
        and box.y_min_cm <= place.y_cm <= box.y_max_cm
        and box.z_min_cm <= place.z_cm <= box.z_max_cm
    )


def _register_agent(draft: Draft, parameters: Parameters, actor_id: bytes, asked: RegisterAgent) -> Result:
    if _is_out_of_bounds(asked, parameters):
        return Code.OUT_OF_BOUNDS
    if draft.agent(asked.agent_id) is not None:
        return Code.AGENT_EXISTS
    standing = draft.actor(actor_id)
    if standing.agents >= parameters.agents_per_actor_max:
        return Code.TOO_MANY_AGENTS
    endow = asked.endow or {}
    if not parameters.resource_kinds.issuperset(endow):
        return Code.UNKNOWN_RESOURCE
    if any(draft.balance(actor_id, kind) < amount for kind, amount in endow.items()):
        return Code.INSUFFICIENT_RESOURCES
    # Only an agent that exists can be given resources: a new one holds what it is endowed with, and no more.
    draft.set_actor(actor_id, Actor(standing.nonce, standing.agents + 1))
    draft.set_agent(asked.agent_id, Agent(actor_id, asked.x_cm, asked.y_cm, asked.z_cm))
    for kind, amount in endow.items():
        draft.set_balance(actor_id, kind, draft.balance(actor_id, kind) - amount)
        draft.set_balance(asked.agent_id, kind, amount)
    return Happened("AgentRegistered", {"owner": actor_id, **asked.to_value()})


def _move_agent(draft: Draft, parameters: Parameters, actor_id: bytes, asked: MoveAgent) -> Result:
    moved = draft.agent(asked.agent_id)
    if moved is None:
        return Code.AGENT_NOT_FOUND
    if moved.owner != actor_id:
        return Code.NOT_AUTHORIZED
    if _is_out_of_bounds(asked, parameters):
        return Code.OUT_OF_BOUNDS
    dx, dy, dz = asked.x_cm - moved.x_cm, asked.y_cm - moved.y_cm, asked.z_cm - moved.z_cm
    if dx * dx + dy * dy + dz * dz > parameters.max_move_cm * parameters.max_move_cm:
        return Code.MOVE_TOO_FAR
    draft.set_agent(asked.agent_id, Agent(actor_id, asked.x_cm, asked.y_cm, asked.z_cm))
    before, after = [moved.x_cm, moved.y_cm, moved.z_cm], [asked.x_cm, asked.y_cm, asked.z_cm]
    # Keys in canonical order, as codec.encode takes them without sorting.
    return Happened("AgentMoved", {"to_cm": after, "from_cm": before, "agent_id": asked.agent_id})


def _transfer_resource(
    draft: Draft, parameters: Parameters, actor_id: bytes, asked: TransferResource
) -> Result:
    if asked.kind not in parameters.resource_kinds:
        return Code.UNKNOWN_RESOURCE
    giver: Holder = actor_id
    if asked.from_agent is not None:
        giver, agent = asked.from_agent, draft.agent(asked.from_agent)
        if agent is None:
            return Code.AGENT_NOT_FOUND
        if agent.owner != actor_id:
            return Code.NOT_AUTHORIZED
    if asked.to_agent is not None and draft.agent(asked.to_agent) is None:
        return Code.AGENT_NOT_FOUND
    taker: Holder | None = asked.to_agent if asked.to_agent is not None else asked.to_actor
    assert taker is not None, "a payload without a receiver"
    held = draft.balance(giver, asked.kind)
    if held < asked.amount:
        return Code.INSUFFICIENT_RESOURCES
    if giver != taker:
        received = draft.balance(taker, asked.kind) + asked.amount
        if received > limits.AMOUNT_MAX:
            return Code.AMOUNT_OVERFLOW
        draft.set_balance(giver, asked.kind, held - asked.amount)
        draft.set_balance(taker, asked.kind, received)
    source: dict[str, codec.Value] = {"from_actor": actor_id} if asked.from_agent is None else {}
    return Happened("ResourceTransferred", source | asked.to_value())


@dataclass(frozen=True, slots=True)
class ActionKind:
    """A row of the table: how to read the payload, what it costs, who handles it."""

    payload: type[Payload]
    fuel: int
    apply: Callable[[Draft, Parameters, bytes, Any], Result]


ACTION_KINDS: Final[dict[str, ActionKind]] = {
    "register_agent": ActionKind(RegisterAgent, FUEL_REGISTER_AGENT, _register_agent),
    "move_agent": ActionKind(MoveAgent, FUEL_MOVE_AGENT, _move_agent),
    "transfer_resource": ActionKind(TransferResource, FUEL_TRANSFER_RESOURCE, _transfer_resource),
}


def fuel_of(kind: str) -> int:
    """What an attempt at this kind of action costs, applied or not."""
    row = ACTION_KINDS.get(kind)
    return FUEL_UNKNOWN_ACTION if row is None else row.fuel


def act(draft: Draft, parameters: Parameters, actor_id: bytes, kind: str, payload: dict[str, Any]) -> Result:
    """Do one action of `actor_id` in the draft, or refuse it with a code and leave the draft as it was."""
    row = ACTION_KINDS.get(kind)
    if row is None:
        return Code.UNKNOWN_ACTION
    try:
        asked = row.payload.from_value(payload)
    except Invalid:
        return Code.BAD_PAYLOAD
    return row.apply(draft, parameters, actor_id, asked)
