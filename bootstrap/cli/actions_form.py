"""What a person writes as actions (a kind and JSON, or JSON Lines) -> the actions of envelopes, or every mistake.

Hides: how JSON says what CBOR says in bytes (a peer id). Guarantees: pure; what it returns fits an envelope's own
rules; a payload that the kernel would certainly refuse as malformed is told here, before a nonce is spent on it. An
action kind unknown here is passed on, since the world may know it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

from bootstrap.config import ConfigMistakes, Mistake
from bootstrap.peers import peer_id_from_text
from runtime import codec, limits
from runtime.actions import MoveAgent, Payload, RegisterAgent, TransferResource
from runtime.errors import Invalid

Action: TypeAlias = tuple[str, dict[str, Any]]

ACTIONS_FILE_BYTES_MAX: Final = 64 << 20
MISTAKES_TOLD_MAX: Final = 20
_PAYLOADS: Final[dict[str, type[Payload]]] = {
    payload.NAME: payload for payload in (RegisterAgent, MoveAgent, TransferResource)
}
_PEER_ID_FIELDS: Final = {TransferResource.NAME: ("to_actor",)}


def parse_action(kind: str, payload_text: str, what: str = "PAYLOAD") -> Action:
    """One action from its kind and the JSON text of its payload. Raises ConfigMistakes."""
    try:
        return kind, _payload(kind, _json(payload_text))
    except _BadAction as bad:
        raise ConfigMistakes([Mistake(f"{what}{bad.where}", bad.why)]) from bad


def parse_action_lines(data: bytes, what: str) -> list[Action]:
    """The actions of a JSON Lines file: {"kind": ..., "payload": {...}} a line. Raises ConfigMistakes."""
    if len(data) > ACTIONS_FILE_BYTES_MAX:
        raise ConfigMistakes(
            [Mistake(what, f"is over {ACTIONS_FILE_BYTES_MAX} bytes (actions_file_bytes_max)")]
        )
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigMistakes([Mistake(what, f"is not UTF-8 at byte {error.start}")]) from error
    actions: list[Action] = []
    mistakes: list[Mistake] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            actions.append(_line(line))
        except _BadAction as bad:
            mistakes.append(Mistake(f"{what}:{number}{bad.where}", bad.why))
    if len(mistakes) > MISTAKES_TOLD_MAX:
        more = len(mistakes) - MISTAKES_TOLD_MAX
        mistakes = [*mistakes[:MISTAKES_TOLD_MAX], Mistake(what, f"and {more} more mistakes")]
    if not actions and not mistakes:
        mistakes.append(Mistake(what, "holds no action"))
    if mistakes:
        raise ConfigMistakes(mistakes)
    return actions


def group_actions(actions: Sequence[Action], per_envelope: int) -> list[tuple[Action, ...]]:
    """Consecutive actions, at most `per_envelope` (1..ACTIONS_PER_ENVELOPE_MAX) in each group."""
    return [tuple(actions[start : start + per_envelope]) for start in range(0, len(actions), per_envelope)]


class _BadAction(Exception):
    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.where = f": {where}" if where else ""


def _line(line: str) -> Action:
    document = _json(line)
    if not isinstance(document, dict) or set(document) != {"kind", "payload"}:
        raise _BadAction('must be {"kind": ..., "payload": {...}}')
    kind = document["kind"]
    if not isinstance(kind, str):
        raise _BadAction("must be text", "kind")
    return kind, _payload(kind, document["payload"])


def _payload(kind: str, payload: object) -> dict[str, Any]:
    if not 1 <= len(kind.encode()) <= limits.NAME_CHARS_MAX:
        raise _BadAction(f"must be 1..{limits.NAME_CHARS_MAX} bytes", "kind")
    if not isinstance(payload, dict):
        raise _BadAction("must be a JSON object", "payload")
    for field in _PEER_ID_FIELDS.get(kind, ()):
        if isinstance(payload.get(field), str):
            try:
                payload[field] = peer_id_from_text(payload[field])
            except ValueError as error:
                raise _BadAction(str(error), field) from error
    try:
        size = len(codec.encode(payload, "payload"))
        known = _PAYLOADS.get(kind)
        if known is not None:
            known.from_value(payload, kind)
    except Invalid as error:
        raise _BadAction(error.why, error.field) from error
    if size > limits.ACTION_PAYLOAD_BYTES_MAX:
        raise _BadAction(f"{size} bytes, over {limits.ACTION_PAYLOAD_BYTES_MAX} (action_payload_bytes_max)")
    return payload


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=_no_float, parse_constant=_no_float)
    except RecursionError as error:
        raise _BadAction(f"is nested deeper than {limits.DEPTH_MAX} (depth_max)") from error
    except json.JSONDecodeError as error:
        raise _BadAction(f"is not JSON: {error.msg} at character {error.pos + 1}") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise _BadAction(f"is not JSON that can be read: {error}") from error


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _BadAction("is there twice", key)
        found[key] = value
    return found


def _no_float(text: str) -> NoReturn:
    raise _BadAction(f"{text} is no integer: a world has integers only")
