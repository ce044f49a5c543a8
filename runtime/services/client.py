"""What a program that is no node asks of one: typed calls to one peer, proofs checked here.

Hides: request bodies and the checking of proofs. Guarantees: `receipt` and `state_value` return only what was proved
against an attested head of this world; the other answers are the peer's own word.
Implements docs/protocol.md, sections "Methods" and "State and proofs" (client side).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from p2p import names
from p2p.network import DistributedNetwork, PeerId
from runtime import chain, codec, genesis, limits, messages, state
from runtime.errors import Invalid
from runtime.evidence import EVIDENCE_BLOB_BYTES_MAX, Evidence, read_evidence
from runtime.messages import Body
from runtime.records import Envelope, Genesis, Receipt, WorldBlock, WorldHeadAnnounce

B = TypeVar("B", bound=Body)
BLOB_BYTES_MAX = 64 << 20
EVIDENCE_LIST_BYTES_MAX = limits.EVIDENCE_MAX * 160


@dataclass(frozen=True, slots=True)
class ProvedOutcome:
    """What became of an envelope, proved against an attested head."""

    block: WorldBlock
    head: WorldHeadAnnounce
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class ProvedValue:
    """One cell of the state (None: proved absent) under an attested head."""

    value: codec.Value
    block: WorldBlock
    head: WorldHeadAnnounce


def _placed(proved: messages.ProvedReceipt) -> tuple[Receipt, chain.ItemProof]:
    return proved.receipt, chain.ItemProof(proved.index, proved.count, proved.path)


@dataclass(frozen=True, slots=True)
class DistributedClient:
    """One peer, as a program sees it. Every call raises p2p errors, and Invalid for an answer that is false."""

    network: DistributedNetwork
    peer: PeerId

    async def call(
        self, method: str, request: Body, answer: type[B], *, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> B:
        """One typed request."""
        data = await self.network.request(self.peer, method, request.to_bytes(), deadline_ms=deadline_ms)
        return answer.from_bytes(data)

    async def hello(self) -> messages.HelloAnswer:
        """Versions and worlds of the peer."""
        return await self.call("hello", messages.Empty(), messages.HelloAnswer)

    async def status(self) -> messages.StatusAnswer:
        """The peer's own account of itself."""
        return await self.call("status", messages.Empty(), messages.StatusAnswer)

    async def genesis(self, world_id: str) -> Genesis:
        """The world's genesis, bound to its id."""
        answer = await self.call(
            "get_genesis", messages.WorldRequest(world_id=world_id), messages.GenesisAnswer
        )
        return genesis.check_genesis(answer.genesis, world_id)

    async def head(self, world_id: str) -> WorldHeadAnnounce | None:
        """The newest head that the peer holds, checked; None before height 1."""
        answer = await self.call(
            "get_world_head", messages.WorldRequest(world_id=world_id), messages.HeadAnswer
        )
        if answer.head is not None:
            chain.check_head(answer.head, world_id)
        return answer.head

    async def submit(self, world_id: str, envelopes: Sequence[Envelope]) -> list[messages.SubmitResult]:
        """Hand in 1..1,024 envelopes; one result for each, in order, each promise checked."""
        request = messages.SubmitRequest(world_id=world_id, envelopes=tuple(envelopes))
        answer = await self.call("submit_actions", request, messages.SubmitAnswer)
        if len(answer.results) != len(envelopes):
            raise Invalid("submit_actions.results", f"{len(answer.results)}, for {len(envelopes)} envelopes")
        for envelope, result in zip(envelopes, answer.results, strict=True):
            self._check_promise(world_id, envelope, result)
        return list(answer.results)

    def _check_promise(self, world_id: str, envelope: Envelope, result: messages.SubmitResult) -> None:
        if (result.acceptance is None) != (result.outcome != "accepted"):
            raise Invalid(
                "submit_actions.acceptance", f"must be there for accepted alone, not {result.outcome}"
            )
        if result.acceptance is None:
            return
        result.acceptance.verify()
        promise = result.acceptance.record
        expected = {
            "world_id": world_id,
            "envelope_hash": envelope.hash(),
            "gateway_id": self.peer,
        }
        for field, value in expected.items():
            if getattr(promise, field) != value:
                raise Invalid(f"submit_actions.acceptance.{field}", "is not what was asked for")

    async def action_status(self, world_id: str, envelope_hash: bytes) -> messages.ActionStatusAnswer:
        """Where an envelope is, by the peer's word."""
        request = messages.ActionStatusRequest(world_id=world_id, envelope_hash=envelope_hash)
        return await self.call("action_status", request, messages.ActionStatusAnswer)

    async def receipt(self, world_id: str, envelope_hash: bytes) -> ProvedOutcome:
        """What became of an envelope, proved. Raises RequestFailed(ERR_NOT_FOUND) while no block has it."""
        request = messages.ReceiptRequest(world_id=world_id, envelope_hash=envelope_hash)
        answer = await self.call("get_receipt", request, messages.ReceiptAnswer)
        chain.check_head(answer.head, world_id)
        chain.check_head_block(answer.head, answer.head_block)
        chain.verify_history_proof(answer.head_block, answer.block, answer.history_path)
        receipts = [_placed(proved) for proved in answer.receipts]
        after = None if answer.after is None else _placed(answer.after)
        chain.verify_envelope_receipts(answer.block, envelope_hash, receipts, after)
        return ProvedOutcome(answer.block, answer.head, tuple(receipt for receipt, _place in receipts))

    async def state_value(self, world_id: str, namespace: str, key: bytes) -> ProvedValue:
        """One cell at the peer's newest block, or its absence, proved."""
        request = messages.StateProofRequest(world_id=world_id, namespace=namespace, key=key)
        answer = await self.call("get_state_proof", request, messages.StateProofAnswer)
        proof = state.StateProof.from_bytes(answer.proof)
        verdict = chain.verify_state_answer(world_id, answer.head, answer.block, namespace, key, proof)
        value = None if verdict.value is None else codec.decode(verdict.value, limits.VALUE_BYTES_MAX, "cell")
        return ProvedValue(value, answer.block, answer.head)

    async def commit(self, world_id: str) -> messages.CommitAnswer:
        """The set in force by the peer's word and its newest commit, both checked against the world's genesis."""
        answer = await self.call(
            "get_commit", messages.WorldRequest(world_id=world_id), messages.CommitAnswer
        )
        known = await self.genesis(world_id)
        authorities = genesis.check_authorities(known.header, answer.authorities)
        if answer.commit is not None:
            chain.check_commit(authorities, answer.commit, world_id=world_id)
        return answer

    async def _parts(
        self, method: str, request: Body, bytes_max: int, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> list[bytes]:
        """All parts of a streamed answer, at most `bytes_max` together."""
        parts: list[bytes] = []
        async with self.network.request_parts(
            self.peer, method, request.to_bytes(), deadline_ms=deadline_ms, bytes_max=bytes_max
        ) as answer:
            while (part := await answer.part()) is not None:
                parts.append(part)
        return parts

    async def evidence_items(self, world_id: str) -> list[messages.EvidenceItem]:
        """What the peer holds as evidence, by its own word; each is fetched by its hash."""
        request = messages.EvidenceRequest(world_id=world_id)
        items: list[messages.EvidenceItem] = []
        for part in await self._parts("get_evidence", request, EVIDENCE_LIST_BYTES_MAX):
            listed = codec.decode(part, EVIDENCE_LIST_BYTES_MAX, "get_evidence")
            if type(listed) is not list:
                raise Invalid("get_evidence", "must be lists of items")
            items += [messages.EvidenceItem.from_value(item, "get_evidence") for item in listed]
        return items[: limits.EVIDENCE_MAX]

    async def evidence(
        self, world_id: str, content_hash: bytes, *, deadline_ms: int = names.REQUEST_TOTAL_MS
    ) -> Evidence:
        """One piece of evidence, its hash checked; what it proves, `evidence.check_evidence` says."""
        request = messages.EvidenceRequest(world_id=world_id, content_hash=content_hash)
        blob = b"".join(await self._parts("get_evidence", request, EVIDENCE_BLOB_BYTES_MAX, deadline_ms))
        if codec.content_id(blob) != content_hash:
            raise Invalid("get_evidence", f"{len(blob)} bytes that are not evidence {content_hash.hex()}")
        return read_evidence(blob)

    async def get_blob(self, content_id: bytes, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
        """A whole blob, its hash checked."""
        data = bytearray()
        request = messages.BlobRequest(content_hash=content_id).to_bytes()
        async with self.network.request_parts(
            self.peer, "fetch_blob", request, bytes_max=bytes_max
        ) as answer:
            while (part := await answer.part()) is not None:
                data += part
        if codec.content_id(bytes(data)) != content_id:
            raise Invalid("fetch_blob", f"{len(data)} bytes that are not blob {content_id.hex()}")
        return bytes(data)
