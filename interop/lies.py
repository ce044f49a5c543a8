"""What a lying node could answer, each lie as good as it can be made without anybody's key but the liar's own.

Pure: a true answer in, a false one out. A reader that leaves out one of the checks of docs/protocol.md, "Head", "State
and proofs", "Actions" and "Joining a world", believes one of these. The receipts are those of an envelope of two
actions, and the world has two blocks at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

from interop.worlds import HandMadeWorld
from runtime import codec
from runtime.keys import SigningKey
from runtime.messages import (
    BatchAnswer,
    BlobRequest,
    BlocksRequest,
    GenesisAnswer,
    HeadAnswer,
    ProvedReceipt,
    ReceiptAnswer,
    StateProofAnswer,
    SubmitAnswer,
    SubmitRequest,
    SubmitResult,
)
from runtime.records import Acceptance, Sealed, SignedAuthorities, WorldBlock, WorldHeadAnnounce, seal
from runtime.state import State, StateProof

AGENT: Final = "abroad"  # whose cell the lies are about
Cell: TypeAlias = dict[str, Any]
_ROGUE: Final = SigningKey(bytes([66]) * 32)
BatchLie: TypeAlias = Callable[[BatchAnswer], BatchAnswer]
BlocksLie: TypeAlias = Callable[[list[WorldBlock]], list[WorldBlock]]
GenesisLie: TypeAlias = Callable[[GenesisAnswer], GenesisAnswer]
PromiseLie: TypeAlias = Callable[[Acceptance, SigningKey], Sealed[Acceptance] | None]
HeadLie: TypeAlias = Callable[[WorldHeadAnnounce], WorldHeadAnnounce]
ReceiptLie: TypeAlias = Callable[[ReceiptAnswer], ReceiptAnswer]
StateLie: TypeAlias = Callable[[StateProofAnswer], StateProofAnswer]


def flipped(data: bytes) -> bytes:
    """One bit at its end is another."""
    return data[:-1] + bytes([data[-1] ^ 1])


# --- heads -------------------------------------------------------------------------------------------------


def of_another_world(head: WorldHeadAnnounce) -> WorldHeadAnnounce:
    """Every seal holds, and it is another world."""
    del head
    return WorldHeadAnnounce.from_bytes(HandMadeWorld("elsewhere").head(7))


def certifier_did_not_seal(head: WorldHeadAnnounce) -> WorldHeadAnnounce:
    """Higher than it is, in the certifier's name."""
    commit = replace(head.commit.record, as_of_ms=head.commit.record.as_of_ms + 1)
    return replace(head, commit=replace(head.commit, record=commit))


def executor_did_not_seal(head: WorldHeadAnnounce) -> WorldHeadAnnounce:
    """Another block than the executor's, in its name."""
    block_hash = flipped(head.block_hash)
    attested = head.attestations[0]
    forged = replace(attested, record=replace(attested.record, block_hash=block_hash))
    return replace(head, block_hash=block_hash, attestations=(forged, *head.attestations[1:]))


def block_is_not_attested(head: WorldHeadAnnounce) -> WorldHeadAnnounce:
    """Another block than the one that every seal is about."""
    return replace(head, block_hash=flipped(head.block_hash))


def certifier_of_its_own(head: WorldHeadAnnounce) -> WorldHeadAnnounce:
    """All seals hold, by a certifier that the genesis does not name."""
    commit = replace(head.commit.record, certifier_id=_ROGUE.identity)
    authorities = replace(head.authorities.authorities, certifiers=(_ROGUE.identity,))
    return replace(head, authorities=SignedAuthorities(authorities), commit=seal(commit, _ROGUE))


# --- state -------------------------------------------------------------------------------------------------


def _moved(cell: Cell) -> Cell:
    return cell | {"x_cm": cell["x_cm"] + 1}


def _true_cell(answer: StateProofAnswer) -> Cell:
    """What the proof says of the agent."""
    cells = StateProof.from_bytes(answer.proof).cells
    assert cells is not None
    entry = next(entry for entry in cells.bucket if entry[0] == AGENT.encode())
    cell: Any = codec.decode(entry[2], 4_096)
    return dict(cell)


def elsewhere(answer: StateProofAnswer) -> StateProofAnswer:
    """Another position in the true proof."""
    cell = _true_cell(answer)
    forged = answer.proof.replace(codec.encode(cell), codec.encode(_moved(cell)))
    assert forged != answer.proof
    return replace(answer, proof=forged)


def hidden(answer: StateProofAnswer) -> StateProofAnswer:
    """The agent is left out of the true proof."""
    proof = StateProof.from_bytes(answer.proof)
    assert proof.cells is not None
    bucket = tuple(entry for entry in proof.cells.bucket if entry[0] != AGENT.encode())
    return replace(answer, proof=replace(proof, cells=replace(proof.cells, bucket=bucket)).to_bytes())


def in_another_block(answer: StateProofAnswer) -> StateProofAnswer:
    """A proof that holds, under a block that is not the head's."""
    state = State.empty().set("agents", AGENT.encode(), codec.encode(_moved(_true_cell(answer))))
    block = replace(answer.block, state_root=state.root())
    return replace(answer, block=block, proof=state.prove("agents", AGENT.encode()).to_bytes())


def on_another_head(answer: StateProofAnswer) -> StateProofAnswer:
    """The same, and the head says that it is its block: only the executor's seal tells."""
    lie = in_another_block(answer)
    attested = answer.head.attestations[0]
    forged = replace(attested, record=replace(attested.record, block_hash=lie.block.hash()))
    return replace(lie, head=replace(answer.head, block_hash=lie.block.hash(), attestations=(forged,)))


# --- receipts ----------------------------------------------------------------------------------------------


def last_left_out(answer: ReceiptAnswer) -> ReceiptAnswer:
    """One receipt of the envelope is not told."""
    return replace(answer, receipts=answer.receipts[:-1])


def last_left_out_as_if_it_were_another(answer: ReceiptAnswer) -> ReceiptAnswer:
    """The same, and the one that is not told is given as what comes behind."""
    return replace(answer, receipts=answer.receipts[:-1], after=answer.receipts[-1])


def end_hidden(answer: ReceiptAnswer) -> ReceiptAnswer:
    """The last one is not told, and the list is said to end before it."""
    kept = tuple(replace(proved, count=proved.count - 1) for proved in answer.receipts[:-1])
    return replace(answer, receipts=kept, after=None)


def applied(answer: ReceiptAnswer) -> ReceiptAnswer:
    """Another outcome than the true one, with the true one's path."""
    return replace(answer, receipts=_all_applied(answer))


def _all_applied(answer: ReceiptAnswer) -> tuple[ProvedReceipt, ...]:
    assert any(proved.receipt.code != "Applied" for proved in answer.receipts)
    return tuple(
        replace(proved, receipt=replace(proved.receipt, code="Applied")) for proved in answer.receipts
    )


def applied_in_a_block_of_its_own(answer: ReceiptAnswer) -> ReceiptAnswer:
    """Another outcome, and every path holds, in a block that is not of the chain."""
    forged = _all_applied(answer)
    leaves = [proved.receipt.to_bytes() for proved in forged]
    receipts = tuple(
        replace(proved, index=index, count=len(leaves), path=tuple(codec.merkle_path(leaves, index)))
        for index, proved in enumerate(forged)
    )
    block = replace(answer.block, receipts_root=codec.merkle_root(leaves))
    return replace(answer, block=block, receipts=receipts, after=None)


def applied_in_the_newest_block(answer: ReceiptAnswer) -> ReceiptAnswer:
    """The same, and that block is given as the head's own."""
    lie = applied_in_a_block_of_its_own(answer)
    block = replace(lie.block, height=answer.head_block.height)
    return replace(lie, block=block, head_block=block, history_path=())


# --- whole worlds -----------------------------------------------------------------------------------------


def genesis_of_another_world(answer: GenesisAnswer) -> GenesisAnswer:
    """All of it holds, and it is another world."""
    del answer
    return GenesisAnswer(genesis=HandMadeWorld("elsewhere").genesis)


def genesis_with_other_rules(answer: GenesisAnswer) -> GenesisAnswer:
    """Agents may move farther than the header says."""
    body = answer.genesis.body
    return GenesisAnswer(
        genesis=replace(answer.genesis, body=replace(body, max_move_cm=body.max_move_cm + 1))
    )


def genesis_with_a_rogue_certifier(answer: GenesisAnswer) -> GenesisAnswer:
    """The liar's own certifier, whom the header does not name."""
    authorities = replace(answer.genesis.authorities, certifiers=(_ROGUE.identity,))
    return GenesisAnswer(genesis=replace(answer.genesis, authorities=authorities))


def commit_not_sealed(answer: BatchAnswer) -> BatchAnswer:
    """The certifier is said to have certified it a little later."""
    commit = replace(answer.commit.record, as_of_ms=answer.commit.record.as_of_ms + 1)
    return replace(answer, commit=replace(answer.commit, record=commit))


def commit_of_a_rogue(answer: BatchAnswer) -> BatchAnswer:
    """The seal holds, by a certifier of the liar's own."""
    commit = replace(answer.commit.record, certifier_id=_ROGUE.identity)
    return replace(answer, commit=seal(commit, _ROGUE))


def batch_of_a_rogue(answer: BatchAnswer) -> BatchAnswer:
    """Another batch, by a proposer of the liar's own, under the commit of the true one."""
    return replace(answer, batch=seal(replace(answer.batch.record, proposer_id=_ROGUE.identity), _ROGUE))


def oldest_block_with_another_state(blocks: list[WorldBlock]) -> list[WorldBlock]:
    """No block above it names it."""
    return [_of_another_state(block) if block.height == 1 else block for block in blocks]


def newest_block_with_another_state(blocks: list[WorldBlock]) -> list[WorldBlock]:
    """The head does not name it."""
    return [*blocks[:-1], _of_another_state(blocks[-1])]


def _of_another_state(block: WorldBlock) -> WorldBlock:
    return replace(block, state_root=flipped(block.state_root))


# --- promises ---------------------------------------------------------------------------------------------


def promise_of_another(promise: Acceptance, gateway: SigningKey) -> Sealed[Acceptance]:
    """Another gateway's promise, whose seal holds."""
    del gateway
    return seal(replace(promise, gateway_id=_ROGUE.identity), _ROGUE)


def promise_for_another_envelope(promise: Acceptance, gateway: SigningKey) -> Sealed[Acceptance]:
    """The gateway's own promise, for what was not handed in."""
    return seal(replace(promise, envelope_hash=flipped(promise.envelope_hash)), gateway)


def promise_for_another_world(promise: Acceptance, gateway: SigningKey) -> Sealed[Acceptance]:
    """The same envelope in a world where it means nothing."""
    return seal(replace(promise, world_id=HandMadeWorld("elsewhere").world_id), gateway)


def promise_not_sealed(promise: Acceptance, gateway: SigningKey) -> Sealed[Acceptance]:
    """Something in the gateway's name that it can deny."""
    sealed = seal(promise, gateway)
    return replace(sealed, record=replace(promise, accepted_at_ms=promise.accepted_at_ms + 1))


def no_promise(promise: Acceptance, gateway: SigningKey) -> None:
    """Accepted, by word alone."""
    del promise, gateway


GENESIS_LIES: Final[dict[str, GenesisLie]] = {
    "a genesis of another world": genesis_of_another_world,
    "a genesis with other rules": genesis_with_other_rules,
    "a genesis with a certifier of the liar's own": genesis_with_a_rogue_certifier,
}
BATCH_LIES: Final[dict[str, BatchLie]] = {
    "a commit that the certifier did not seal": commit_not_sealed,
    "a commit by a certifier of the liar's own": commit_of_a_rogue,
    "a batch by a proposer of the liar's own": batch_of_a_rogue,
}
BLOCKS_LIES: Final[dict[str, BlocksLie]] = {
    "a first block with another state": oldest_block_with_another_state,
    "a last block with another state": newest_block_with_another_state,
}
BLOB_LIE: Final = "blobs with a bit that is another"
PROMISE_LIES: Final[dict[str, PromiseLie]] = {
    "a promise of another gateway": promise_of_another,
    "a promise for another envelope": promise_for_another_envelope,
    "a promise for another world": promise_for_another_world,
    "a promise that the gateway did not seal": promise_not_sealed,
    "accepted without a promise": no_promise,
}
HEAD_LIES: Final[dict[str, HeadLie]] = {
    "a head of another world": of_another_world,
    "a head that the certifier did not seal": certifier_did_not_seal,
    "a head that the executor did not seal": executor_did_not_seal,
    "a head with a block that nobody attested": block_is_not_attested,
    "a head with a certifier of the liar's own": certifier_of_its_own,
}
RECEIPT_LIES: Final[dict[str, ReceiptLie]] = {
    "a receipt left out": last_left_out,
    "a receipt given as another envelope's": last_left_out_as_if_it_were_another,
    "a list that ends too early": end_hidden,
    "another outcome under a true path": applied,
    "another outcome in a block beside the chain": applied_in_a_block_of_its_own,
    "another outcome in the head's block": applied_in_the_newest_block,
}
STATE_LIES: Final[dict[str, StateLie]] = {
    "another position in the proof": elsewhere,
    "an agent left out of the proof": hidden,
    "a true proof in another block": in_another_block,
    "a true proof on a forged head": on_another_head,
}


WORLD_LIES: Final = (*GENESIS_LIES, *HEAD_LIES, *BATCH_LIES, *BLOCKS_LIES, BLOB_LIE)
"""What can be told to who mirrors a world."""


def twisted(lie: str, method: str, answer: bytes) -> bytes:
    """The answer as the liar gives it; the true one where the lie is about another method."""
    if method == HeadAnswer.NAME and lie in HEAD_LIES:
        head = HeadAnswer.from_bytes(answer).head
        assert head is not None
        return HeadAnswer(head=HEAD_LIES[lie](head)).to_bytes()
    if method == StateProofAnswer.NAME and lie in STATE_LIES:
        return STATE_LIES[lie](StateProofAnswer.from_bytes(answer)).to_bytes()
    if method == ReceiptAnswer.NAME and lie in RECEIPT_LIES:
        return RECEIPT_LIES[lie](ReceiptAnswer.from_bytes(answer)).to_bytes()
    if method == GenesisAnswer.NAME and lie in GENESIS_LIES:
        return GENESIS_LIES[lie](GenesisAnswer.from_bytes(answer)).to_bytes()
    if method == BatchAnswer.NAME and lie in BATCH_LIES:
        return BATCH_LIES[lie](BatchAnswer.from_bytes(answer)).to_bytes()
    return answer


def twisted_part(lie: str, method: str, part: bytes) -> bytes:
    """The same for one part of an answer."""
    if method == BlobRequest.NAME and lie == BLOB_LIE:
        return flipped(part)
    if method == BlocksRequest.NAME and lie in BLOCKS_LIES:
        listed: Any = codec.decode(part, len(part))
        blocks = [WorldBlock.from_value(value) for value in listed]
        return codec.encode([block.to_value() for block in BLOCKS_LIES[lie](blocks)])
    return part


def promised(lie: str, request: SubmitRequest, gateway: SigningKey, now_ms: int) -> SubmitAnswer:
    """What a gateway answers that takes all of them; with a lie, what none would."""
    results = []
    for envelope in request.envelopes:
        promise = Acceptance(
            world_id=request.world_id,
            envelope_hash=envelope.hash(),
            gateway_id=gateway.identity,
            accepted_at_ms=now_ms,
            stage="local",
        )
        acceptance = PROMISE_LIES[lie](promise, gateway) if lie in PROMISE_LIES else seal(promise, gateway)
        results.append(SubmitResult(outcome="accepted", acceptance=acceptance))
    return SubmitAnswer(results=tuple(results))
