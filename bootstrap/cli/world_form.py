"""What a world builder writes (a TOML file, flags) -> a Genesis, or every mistake at once.

Hides: defaults, and where each part of a genesis goes. Guarantees: pure but for `identity_of`, which is handed in and
reads key files; nothing about the world comes from anywhere but the form and `created_ms`.
Documented in docs/operations.md, section "Making a world".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

from bootstrap.config import ConfigMistakes, Mistake, nearest, parse_toml
from runtime import genesis as genesis_module
from runtime import limits
from runtime.errors import Invalid
from runtime.records import Bounds, Genesis, GenesisBody, GenesisHeader, WorldLimits
from runtime.schema import Record, wrong_fields

IdentityOf = Callable[[str, Path], bytes]
"""(text, folder of relative files) -> key id of a peer id or a key file; raises ValueError with the reason."""

T = TypeVar("T")

BOUNDS: Final = tuple(item.name for item in fields(Bounds))
WORLD_LIMITS: Final = tuple(item.name for item in fields(WorldLimits))
BOUND_CM_DEFAULT: Final = 1_000_000_000
MAX_MOVE_CM_DEFAULT: Final = 1_000_000
_NUMBERS: Final = {
    "max_move_cm": MAX_MOVE_CM_DEFAULT,
    "checkpoint_interval": limits.CHECKPOINT_INTERVAL_DEFAULT,
    "max_block_gap_ms": 0,
}
_KEY_LISTS: Final = ("root_keys", "proposers", "executors")
KEYS: Final = (
    *("name", "created_ms", "resource_kinds", "certifier", "root_threshold"),
    *(*_NUMBERS, *_KEY_LISTS, "bounds", "limits", "balance"),
)
_BALANCE_KEYS: Final = ("actor", "kind", "amount")


def read_world_form(
    text: str | None,
    file_name: str,
    given: Mapping[str, Any],
    *,
    created_ms: int,
    identity_of: IdentityOf,
    mistakes: Sequence[Mistake] = (),
) -> Genesis:
    """The genesis of a form: keys of `given` (flags) replace those of the TOML `text`; numbers may be text there.

    Raises ConfigMistakes: `mistakes` that were found on the way here, and all of the form.
    """
    document: dict[str, Any] = {}
    found = list(mistakes)
    if text is not None:
        try:
            document = parse_toml(text, file_name)
        except ConfigMistakes as error:  # then nothing can be said of what the flags leave to it
            raise ConfigMistakes([*found, *error.mistakes]) from error
    form = _Form(document, dict(given), Path(file_name).parent, identity_of, found)
    return form.genesis(created_ms)


def integer_of(text: str) -> int | None:
    """The integer that a flag spells; None for what is none."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,24}", text, re.ASCII) else None


class _Form:
    """Reads each part, keeps every mistake; a part that is wrong reads as its default so that reading can go on."""

    def __init__(
        self,
        document: dict[str, Any],
        given: dict[str, Any],
        folder: Path,
        identity_of: IdentityOf,
        mistakes: Sequence[Mistake],
    ) -> None:
        self._values = document | given
        self._given = given
        self._folder = folder
        self._identity_of = identity_of
        self._mistakes = [
            *mistakes,
            *(Mistake(key, f"unknown key{nearest(key, KEYS)}") for key in document if key not in KEYS),
        ]

    def genesis(self, created_ms: int) -> Genesis:
        body = self._body()
        name = self._values.get("name")
        if not isinstance(name, str):
            self._mistake("name", "is needed, as text")
        else:
            self._check_fields(GenesisHeader, {"name": name})
        keys = {field: self._identities(field) for field in _KEY_LISTS}
        certifier = self._certifier()
        threshold = self._number("root_threshold", 1)
        created_ms = self._number("created_ms", created_ms)
        self._check_fields(GenesisHeader, {"root_threshold": threshold, "created_ms": created_ms})
        if self._mistakes or body is None:
            raise ConfigMistakes(self._mistakes)
        try:
            return genesis_module.make_genesis(
                name=str(name),
                root_keys=keys["root_keys"],
                root_threshold=threshold,
                proposers=keys["proposers"],
                executors=keys["executors"],
                certifier=certifier,
                body=body,
                created_ms=created_ms,
            )
        except Invalid as error:
            self._invalid(error)
            raise ConfigMistakes(self._mistakes) from error

    def _body(self) -> GenesisBody | None:
        bounds = self._bounds()
        world_limits = self._world_limits()
        numbers = {key: self._number(key, default) for key, default in _NUMBERS.items()}
        kinds = self._texts("resource_kinds", 0)
        self._check_fields(GenesisBody, numbers)
        for index, kind in enumerate(kinds):
            self._check_fields(GenesisHeader, {"name": kind}, f"resource_kinds[{index}]")
        if len(set(kinds)) != len(kinds):
            self._mistake("resource_kinds", "holds a kind twice")
        balances = self._balances()
        if bounds is None or world_limits is None or self._mistakes:
            return None
        return self._tried(
            lambda: genesis_module.make_body(
                bounds=bounds, resource_kinds=kinds, balances=balances, world_limits=world_limits, **numbers
            )
        )

    def _bounds(self) -> Bounds | None:
        table = self._table("bounds", BOUNDS)
        defaults = {key: -BOUND_CM_DEFAULT if "min" in key else BOUND_CM_DEFAULT for key in BOUNDS}
        self._check_fields(Bounds, table)
        return self._tried(lambda: Bounds(**(defaults | table)))

    def _world_limits(self) -> WorldLimits | None:
        defaults = genesis_module.default_limits()
        table = {name: getattr(defaults, name) for name in WORLD_LIMITS} | self._table("limits", WORLD_LIMITS)
        self._check_fields(WorldLimits, table)
        return self._tried(lambda: WorldLimits(**table))

    def _table(self, key: str, known: Sequence[str]) -> dict[str, Any]:
        table = self._values.get(key, {})
        if not isinstance(table, dict):
            self._mistake(key, "must be a table")
            return {}
        for name in table:
            if name not in known:
                self._mistake(f"{key}.{name}", f"unknown key{nearest(name, known)}")
        return {name: value for name, value in table.items() if name in known}

    def _number(self, key: str, default: int) -> int:
        value = self._values.get(key, default)
        if key in self._given and isinstance(value, str):
            value = integer_of(value)
        if type(value) is not int:
            self._mistake(key, "must be an integer")
            return default
        return value

    def _texts(self, key: str, count_min: int) -> list[str]:
        values = self._values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self._mistake(key, "must be a list of texts")
            return []
        if len(values) < count_min:
            self._mistake(key, "is needed: a list of peer ids or key files")
        return values

    def _identities(self, key: str) -> list[bytes]:
        found = [
            self._identity(f"{key}[{index}]", key, text) for index, text in enumerate(self._texts(key, 1))
        ]
        known = [identity for identity in found if identity]
        if len(set(known)) != len(known):
            self._mistake(key, "holds a key twice")
        return known

    def _certifier(self) -> bytes:
        text = self._values.get("certifier")
        if not isinstance(text, str):
            self._mistake("certifier", "is needed: the peer id or key file of the coordinator")
            return b""
        return self._identity("certifier", "certifier", text)

    def _identity(self, what: str, key: str, text: str) -> bytes:
        # A file named in the form lies beside the form, one named by a flag in the working directory.
        folder = Path() if key in self._given else self._folder
        try:
            return self._identity_of(text, folder)
        except ValueError as error:
            self._mistake(what, str(error))
            return b""

    def _balances(self) -> dict[tuple[bytes, str], int]:
        listed = self._values.get("balance", [])
        balances: dict[tuple[bytes, str], int] = {}
        if not isinstance(listed, list):
            self._mistake("balance", "must be [[balance]] tables")
            return balances
        for index, item in enumerate(listed):
            what = f"balance[{index}]"
            if not isinstance(item, dict) or set(item) != set(_BALANCE_KEYS):
                self._mistake(what, "must hold exactly actor, kind and amount")
                continue
            actor, kind, amount = item["actor"], item["kind"], item["amount"]
            if not isinstance(actor, str) or not isinstance(kind, str) or type(amount) is not int:
                self._mistake(what, "must hold texts actor and kind, and an integer amount")
                continue
            identity = self._identity(f"{what}.actor", "balance", actor)
            if (identity, kind) in balances:
                self._mistake(what, f"{actor} has a balance of {kind} already")
            balances[identity, kind] = amount
        return balances

    def _tried(self, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Invalid as error:
            self._invalid(error)
            return None

    def _check_fields(self, record: type[Record], values: Mapping[str, Any], what: str = "") -> None:
        for error in wrong_fields(record, values):
            self._invalid(error, what)

    def _invalid(self, error: Invalid, what: str = "") -> None:
        """A rule of the records that does not hold, told once and by the form's own words for the field."""
        field = what or error.field.removeprefix("genesis_body.").removeprefix("genesis.")
        mistake = Mistake(field, error.why)
        if mistake not in self._mistakes:
            self._mistakes.append(mistake)

    def _mistake(self, what: str, why: str) -> None:
        self._mistakes.append(Mistake(what, why))
