"""The kernel: the world as a pure function of its genesis and its batches.

Hides: cells, actions and fuel. Guarantees: `step` gives the same outcome on every machine, raises for no
envelope that is well formed, and takes each envelope as a whole or not at all:

    signature, expiry, the future, nonce    the first failure: one refusal receipt, nothing is taken
    else taken                              nonce + 1, one receipt for each action; `atomic`: all or none

Implements docs/protocol.md, sections "Step" and "Receipts".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime import keys
from runtime.actions import Code, Happened, act, fuel_of
from runtime.cells import (
    ACTORS,
    AGENTS,
    KERNEL,
    LEDGER,
    Actor,
    Agent,
    Draft,
    Holder,
    Parameters,
    actor,
    actor_nonce,
    agent,
    agent_key,
    balance,
    decode_amount,
    ledger_key,
    parameter_cells,
    parameters,
)
from runtime.codec import encode
from runtime.records import ActionBatch, ActionEnvelope, Envelope, Event, Genesis, Receipt
from runtime.state import Cell, State


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch gave: the next state, receipts in list order, events in the order of their actions."""

    state: State
    receipts: tuple[Receipt, ...]
    events: tuple[Event, ...]
    fuel_used: int


def genesis_state(genesis: Genesis) -> State:
    """The state at height 0: the kernel's parameters and the initial balances."""
    cells: dict[Cell, bytes | None] = parameter_cells(genesis.body)
    for actor_id, kind, amount in genesis.body.balances:
        if amount:
            cells[LEDGER, ledger_key(actor_id, kind)] = encode(amount)
    return State.empty().update(cells)


def check_signatures(envelopes: Iterable[Envelope]) -> list[bool]:
    """For each envelope, whether its actor signed it. Pure CPU, the dearest part: any chunk, any thread."""
    return [
        keys.verify(sealed.record.actor_id, sealed.record.hash(), sealed.signature) for sealed in envelopes
    ]


def step(
    genesis: Genesis,
    state: State,
    batch: ActionBatch,
    envelopes: Sequence[Envelope],
    signatures: Sequence[bool],
) -> Outcome:
    """Apply the envelopes of a batch, which has passed `chain.check_batch_form`, to the state before it.

    `signatures` are the answers of `check_signatures` for exactly these envelopes. `state` is not changed.
    """
    assert batch.world_id == genesis.header.world_id, "a batch of another world"
    run = _Run(state, batch)
    for sealed, is_signed in zip(envelopes, signatures, strict=True):
        run.envelope(sealed.record, is_signed)
    return Outcome(run.draft.commit(), tuple(run.receipts), tuple(run.events), run.fuel_used)


class _Run:
    """One batch on its way through the kernel."""

    __slots__ = ("batch", "draft", "events", "fuel_used", "parameters", "receipts")

    def __init__(self, state: State, batch: ActionBatch) -> None:
        self.batch = batch
        self.draft = Draft(state)
        self.parameters: Parameters = parameters(state)
        self.receipts: list[Receipt] = []
        self.events: list[Event] = []
        self.fuel_used = 0

    def envelope(self, envelope: ActionEnvelope, is_signed: bool) -> None:
        refusal = self.refusal(envelope, is_signed)
        if refusal is not None:
            self.receipts.append(Receipt(envelope.hash(), refusal.value))
            return
        standing = self.draft.actor(envelope.actor_id)
        self.draft.set_actor(envelope.actor_id, Actor(standing.nonce + 1, standing.agents))
        codes, events = self.actions(envelope)
        self.events += events
        self.receipts += [Receipt(envelope.hash(), code.value, index) for index, code in enumerate(codes)]

    def refusal(self, envelope: ActionEnvelope, is_signed: bool) -> Code | None:
        """Why the envelope is not taken, or None. The order of the checks is consensus."""
        height, limits = self.batch.height, self.parameters
        if not is_signed:
            return Code.BAD_SIGNATURE
        # Admission is `open` in every world of this version: no actor is refused here.
        if envelope.expires_at_height < height:
            return Code.EXPIRED
        if envelope.expires_at_height > height + limits.expiry_blocks_max:
            return Code.EXPIRY_TOO_FAR
        if envelope.timestamp_ms > self.batch.timestamp_ms + limits.action_skew_ms:
            return Code.FROM_THE_FUTURE
        if envelope.nonce != self.draft.actor(envelope.actor_id).nonce:
            return Code.NONCE_MISMATCH
        return None

    def actions(self, envelope: ActionEnvelope) -> tuple[list[Code], list[Event]]:
        """A code for every action of a taken envelope, and the events of those that stand."""
        codes: list[Code] = []
        events: list[Event] = []
        before = self.draft.mark()
        for index, (kind, payload) in enumerate(envelope.actions):
            result = self.action(envelope.actor_id, kind, payload)
            if isinstance(result, Happened):
                codes.append(Code.APPLIED)
                events.append(Event(result.kind, envelope.hash(), index, result.data))
            elif envelope.atomic:
                self.draft.roll_back(before)
                codes = [Code.ATOMIC_ROLLED_BACK] * len(envelope.actions)
                codes[index] = result
                return codes, []
            else:
                codes.append(result)
        return codes, events

    def action(self, actor_id: bytes, kind: str, payload: dict[str, object]) -> Happened | Code:
        # An attempt is paid for whether it is applied, refused or rolled back: the work was done.
        fuel = fuel_of(kind)
        if self.fuel_used + fuel > self.parameters.block_fuel_max:
            return Code.BLOCK_FUEL_EXHAUSTED
        self.fuel_used += fuel
        return act(self.draft, self.parameters, actor_id, kind, payload)


# --- reading outcomes --------------------------------------------------------------------------------------


def envelope_outcome(receipts: Iterable[Receipt], envelope_hash: bytes) -> tuple[Receipt, ...]:
    """A block's receipts for one envelope: none where it is not in it, one without index when refused."""
    return tuple(receipt for receipt in receipts if receipt.envelope_hash == envelope_hash)


def was_taken(outcome: Sequence[Receipt]) -> bool:
    """Whether these receipts of one envelope say that it was taken (whatever became of its actions)."""
    return bool(outcome) and outcome[0].index is not None


def taken_places(receipts: Sequence[Receipt]) -> dict[bytes, int]:
    """Envelope hash -> place in the receipt list of its first receipt, for every envelope that was taken."""
    return {
        receipt.envelope_hash: place
        for place, receipt in reversed(list(enumerate(receipts)))
        if receipt.index == 0
    }


__all__ = [
    "ACTORS",
    "AGENTS",
    "KERNEL",
    "LEDGER",
    "Actor",
    "Agent",
    "Code",
    "Holder",
    "Outcome",
    "actor",
    "actor_nonce",
    "agent",
    "agent_key",
    "balance",
    "check_signatures",
    "decode_amount",
    "envelope_outcome",
    "genesis_state",
    "ledger_key",
    "step",
    "taken_places",
    "was_taken",
]
