"""A program that hands in an envelope believes no promise that it was not given for just that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runtime.errors import Invalid
from runtime.keys import SigningKey
from runtime.messages import SubmitAnswer, SubmitResult
from runtime.records import Acceptance, seal
from runtime.services.client import DistributedClient

GATEWAY, OTHER = SigningKey(bytes([7]) * 32), SigningKey(bytes([8]) * 32)
OTHER_WORLD = "a" * 32


class Answering:
    """A network whose one peer answers everything with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def request(self, *_: object, **__: object) -> bytes:
        return self._answer


async def handed_in(
    small: Any, outcome: str, signer: SigningKey | None, **changes: Any
) -> list[SubmitResult]:
    """What the client makes of an outcome with a promise by `signer`, or with none."""
    envelope = small.envelope(small.actors[0], ("move_agent", {}))
    promise = signer and seal(
        Acceptance(
            **{
                "world_id": small.world_id,
                "envelope_hash": envelope.hash(),
                "gateway_id": signer.identity,
                "accepted_at_ms": 1,
                "stage": "local",
            }
            | changes
        ),
        signer,
    )
    answer = SubmitAnswer(results=(SubmitResult(outcome=outcome, acceptance=promise or None),))
    client = DistributedClient(Answering(answer.to_bytes()), GATEWAY.identity)  # type: ignore[arg-type]
    return await client.submit(small.world_id, [envelope])


async def test_a_promise_of_the_gateway_that_was_asked_is_believed(
    small_world: Callable[..., Any],
) -> None:
    [result] = await handed_in(small_world(), "accepted", GATEWAY)
    assert result.acceptance is not None


@pytest.mark.parametrize(
    ("field", "signer", "changes"),
    [
        ("gateway_id", OTHER, {}),
        ("envelope_hash", GATEWAY, {"envelope_hash": bytes(32)}),
        ("world_id", GATEWAY, {"world_id": OTHER_WORLD}),
    ],
)
async def test_a_promise_of_something_else_is_refused(
    small_world: Callable[..., Any], field: str, signer: SigningKey, changes: dict[str, Any]
) -> None:
    with pytest.raises(Invalid, match=f"acceptance.{field}"):
        await handed_in(small_world(), "accepted", signer, **changes)


@pytest.mark.parametrize(
    ("outcome", "signer"), [("accepted", None), ("pooled", GATEWAY), ("refused", GATEWAY)]
)
async def test_accepted_comes_with_a_promise_and_nothing_else_does(
    small_world: Callable[..., Any], outcome: str, signer: SigningKey | None
) -> None:
    with pytest.raises(Invalid, match="must be there for accepted alone"):
        await handed_in(small_world(), outcome, signer)
