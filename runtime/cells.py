"""What the kernel keeps, and under which keys: typed cells over the bytes of a State.

| namespace | key                                        | value (canonical CBOR)                           |
|-----------|--------------------------------------------|--------------------------------------------------|
| actors    | the 38 bytes of the actor's key id         | {nonce: envelopes taken, agents: registered}     |
| agents    | agent id, UTF-8                            | {owner, x_cm, y_cm, z_cm}                        |
| ledger    | CBOR ["actor", key id, resource kind]      | amount, 1..2^63-1; a balance of zero has no cell |
|           | CBOR ["agent", agent id, resource kind]    |                                                  |
| kernel    | name of a parameter, see `parameter_cells` | its value                                        |

Hides: encodings of keys and values. Guarantees: a Draft changes no State; `roll_back` undoes exactly what was
written since its mark. Implements docs/protocol.md, section "Cells".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from runtime import codec, limits
from runtime.records import Bounds, GenesisBody
from runtime.schema import Coordinate, Count, KeyId, Record
from runtime.state import Cell, State

ACTORS, AGENTS, LEDGER, KERNEL = "actors", "agents", "ledger", "kernel"

Holder: TypeAlias = bytes | str
"""Who holds a balance: an actor (38-byte key id) or an agent (its id)."""


@dataclass(frozen=True, slots=True)
class Actor(Record):
    """One key's standing: `nonce` envelopes taken so far (the next one carries it), `agents` registered."""

    NAME: ClassVar[str] = "actor"
    BYTES_MAX: ClassVar[int] = limits.VALUE_INLINE_BYTES_MAX
    VERSIONED: ClassVar[bool] = False

    nonce: Count = 0
    agents: Count = 0


@dataclass(frozen=True, slots=True)
class Agent(Record):
    """Where an agent is, in integer centimetres, and which actor it belongs to."""

    NAME: ClassVar[str] = "agent"
    BYTES_MAX: ClassVar[int] = limits.VALUE_INLINE_BYTES_MAX
    VERSIONED: ClassVar[bool] = False

    owner: KeyId
    x_cm: Coordinate
    y_cm: Coordinate
    z_cm: Coordinate


def agent_key(agent_id: str) -> bytes:
    """Key of an agent's cell in `agents`."""
    return agent_id.encode()


def ledger_key(holder: Holder, kind: str) -> bytes:
    """Key of a balance in `ledger`; `holder` is an actor's key id (bytes) or an agent's id (text)."""
    return codec.encode(["actor" if isinstance(holder, bytes) else "agent", holder, kind])


def _decode(value: bytes, cell: str) -> codec.Value:
    return codec.decode(value, limits.VALUE_BYTES_MAX, cell)


# --- readers -----------------------------------------------------------------------------------------------


def actor(state: State, actor_id: bytes) -> Actor:
    """An actor's standing; one that never acted has nonce 0 and no agents."""
    value = state.get(ACTORS, actor_id)
    return Actor() if value is None else Actor.from_bytes(value)


def actor_nonce(state: State, actor_id: bytes) -> int:
    """The nonce that the actor's next envelope must carry."""
    return actor(state, actor_id).nonce


def agent(state: State, agent_id: str) -> Agent | None:
    """An agent, or None."""
    value = state.get(AGENTS, agent_key(agent_id))
    return None if value is None else Agent.from_bytes(value)


def balance(state: State, holder: Holder, kind: str) -> int:
    """How much of a resource an actor (bytes) or an agent (text) holds."""
    value = state.get(LEDGER, ledger_key(holder, kind))
    return 0 if value is None else decode_amount(value)


def decode_amount(value: bytes) -> int:
    """The amount in a ledger cell, e.g. one that a proof gave."""
    amount: int = _decode(value, "ledger")
    return amount


# --- parameters --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a step asks of the kernel namespace. Envelope and batch limits hold for ever: not here."""

    bounds: Bounds
    max_move_cm: int
    resource_kinds: frozenset[str]
    block_fuel_max: int
    agents_per_actor_max: int
    expiry_blocks_max: int
    action_skew_ms: int


def parameter_cells(body: GenesisBody) -> dict[Cell, bytes | None]:
    """The kernel namespace at height 0."""
    values: dict[str, codec.Value] = {
        "bounds": body.bounds.to_value(),
        "max_move_cm": body.max_move_cm,
        "resource_kinds": list(body.resource_kinds),
        "block_fuel_max": body.limits.block_fuel_max,
        "agents_per_actor_max": body.limits.agents_per_actor_max,
        "expiry_blocks_max": body.limits.expiry_blocks_max,
        "action_skew_ms": body.limits.action_skew_ms,
        "checkpoint_interval": body.checkpoint_interval,
        "max_block_gap_ms": body.max_block_gap_ms,
        "admission": body.admission,
    }
    return {(KERNEL, name.encode()): codec.encode(value) for name, value in values.items()}


def parameters(state: State) -> Parameters:
    """The parameters in force in this state."""

    def read(name: str) -> codec.Value:
        value = state.get(KERNEL, name.encode())
        assert value is not None, f"a state without the kernel parameter {name}"
        return _decode(value, name)

    return Parameters(
        bounds=Bounds.from_value(read("bounds")),
        max_move_cm=read("max_move_cm"),
        resource_kinds=frozenset(read("resource_kinds")),
        block_fuel_max=read("block_fuel_max"),
        agents_per_actor_max=read("agents_per_actor_max"),
        expiry_blocks_max=read("expiry_blocks_max"),
        action_skew_ms=read("action_skew_ms"),
    )


# --- drafts ------------------------------------------------------------------------------------------------

_Typed: TypeAlias = Actor | Agent | int | None


class Draft:
    """Cells on their way to the next state: reads see what was written, `commit` makes the new State."""

    __slots__ = ("_base", "_cells", "_changed", "_keys", "_undo")

    def __init__(self, base: State) -> None:
        self._base = base
        self._cells: dict[Cell, _Typed] = {}  # read or written, decoded once
        self._changed: dict[Cell, None] = {}
        self._undo: list[tuple[Cell, _Typed]] = []
        self._keys: dict[tuple[Holder, str], Cell] = {}

    def actor(self, actor_id: bytes) -> Actor:
        cell = (ACTORS, actor_id)
        if cell not in self._cells:
            self._cells[cell] = actor(self._base, actor_id)
        found = self._cells[cell]
        assert isinstance(found, Actor)
        return found

    def set_actor(self, actor_id: bytes, standing: Actor) -> None:
        self._write((ACTORS, actor_id), self.actor(actor_id), standing)

    def agent(self, agent_id: str) -> Agent | None:
        cell = (AGENTS, agent_key(agent_id))
        if cell not in self._cells:
            self._cells[cell] = agent(self._base, agent_id)
        found = self._cells[cell]
        assert found is None or isinstance(found, Agent)
        return found

    def set_agent(self, agent_id: str, placed: Agent) -> None:
        self._write((AGENTS, agent_key(agent_id)), self.agent(agent_id), placed)

    def balance(self, holder: Holder, kind: str) -> int:
        cell = self._ledger_cell(holder, kind)
        if cell not in self._cells:
            self._cells[cell] = balance(self._base, holder, kind)
        found = self._cells[cell]
        assert isinstance(found, int)
        return found

    def set_balance(self, holder: Holder, kind: str, amount: int) -> None:
        assert 0 <= amount <= limits.AMOUNT_MAX, "a balance outside 0..2^63-1"
        self._write(self._ledger_cell(holder, kind), self.balance(holder, kind), amount)

    def mark(self) -> int:
        """A point to which `roll_back` can return."""
        return len(self._undo)

    def roll_back(self, mark: int) -> None:
        """Undo every write since the mark."""
        while len(self._undo) > mark:
            cell, before = self._undo.pop()
            self._cells[cell] = before

    def commit(self) -> State:
        """The state with everything written; the base is unchanged."""
        return self._base.update({cell: _encode(self._cells[cell]) for cell in self._changed})

    def _ledger_cell(self, holder: Holder, kind: str) -> Cell:
        known = self._keys.get((holder, kind))
        if known is None:
            known = self._keys[holder, kind] = (LEDGER, ledger_key(holder, kind))
        return known

    def _write(self, cell: Cell, before: _Typed, after: _Typed) -> None:
        self._undo.append((cell, before))
        self._cells[cell] = after
        self._changed[cell] = None


def _encode(value: _Typed) -> bytes | None:
    """Bytes of a cell; None (no cell) for what is absent and for a balance of zero."""
    if isinstance(value, int):
        return codec.encode(value) if value else None
    return None if value is None else value.to_bytes()
