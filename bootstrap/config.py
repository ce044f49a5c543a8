"""What a node is told to be: one frozen NodeConfig out of node.toml, flags and AW_* variables.

Hides: where each value came from and which source wins (flags, then AW_*, then the file, then the default).
Guarantees: pure: text and mappings in, a NodeConfig or *every* mistake at once out; an unknown key is a mistake, told
with the nearest known name; no knob that nothing reads. Documented in docs/operations.md, section "Configuration".
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bootstrap.peers import parse_listen_addr, parse_peer_addr
from p2p import names
from runtime import limits as world_limits

ROLES: Final = ("gateway", "sequencer", "coordinator", "executor", "storage", "index", "observer")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")
LEASE_STORES: Final = ("embedded", "etcd")
CONFIG_BYTES_MAX: Final = 256 * 1024
TEXT_CHARS_MAX: Final = 1_024
WORLDS_MAX: Final = 64
ADDRS_MAX: Final = 64
ETCD_ENDPOINTS_MAX: Final = 16
ENV_PREFIX: Final = "AW_"
ENV_LIMIT_PREFIX: Final = "AW_LIMIT_"
ENV_ELSEWHERE: Final = ("AW_CONFIG", "AW_DEBUG", "AW_KEY", "AW_NODE")  # read by the command line itself

_WORLD_ID = re.compile(r"[a-z2-7]{32}", re.ASCII)


def _limit(default: int, low: int, high: int, about: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "about": about})


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What an operator may set under `[limits]`; the other limits of docs/operations.md are fixed."""

    disk_bytes_max: int = _limit(
        20_000_000_000, 64 << 20, 1 << 46, "blobs and tables on disk; writes past it are refused"
    )
    scrub_bytes_per_s: int = _limit(
        8 << 20, 64 << 10, 1 << 36, "how fast stored blobs are read and compared with their hashes, at most"
    )
    scrub_interval_ms: int = _limit(
        3_600_000, 1_000, 31 * 86_400_000, "from one reading of all blobs to the next, when it takes less"
    )
    known_peers_max: int = _limit(names.KNOWN_PEERS_MAX, 1, 65_536, "peers remembered in peers.json")
    addrs_per_peer_max: int = _limit(names.ADDRS_PER_PEER_MAX, 1, 64, "addresses remembered for one peer")
    in_flight_per_peer_max: int = _limit(
        names.IN_FLIGHT_PER_PEER_MAX, 1, 4_096, "requests of one peer being answered"
    )
    in_flight_total_max: int = _limit(
        names.IN_FLIGHT_TOTAL_MAX, 1, 65_536, "requests of all peers being answered"
    )
    streams_per_peer_max: int = _limit(names.STREAMS_PER_PEER_MAX, 1, 1_024, "open streams of one peer")
    requests_per_s_per_peer_max: int = _limit(
        names.REQUESTS_PER_S_PER_PEER_MAX,
        100,  # what the dearest method counts as
        1_000_000,
        "requests of one peer in a second",
    )
    request_bytes_per_s_per_peer_max: int = _limit(
        names.REQUEST_BYTES_PER_S_PER_PEER_MAX,
        names.FRAME_BYTES_MAX,
        1 << 40,
        "request bytes of one peer in a second",
    )
    provider_republish_ms: int = _limit(
        names.PROVIDER_REPUBLISH_MS, 1_000, 43_200_000, "how often what this node provides is announced again"
    )
    provider_cache_ttl_ms: int = _limit(
        names.PROVIDER_CACHE_TTL_MS,
        0,
        86_400_000,
        "how long providers seen in the DHT are remembered; 0: not at all",
    )
    head_cache_ttl_ms: int = _limit(
        names.HEAD_CACHE_TTL_MS, 0, 86_400_000, "how long a head seen in the DHT is a floor; 0: not at all"
    )

    def in_force(self) -> dict[str, int]:
        """Every settable limit by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, slots=True)
class WorldSource:
    """A world to take part in: by its genesis file, or by its id alone. Exactly one of the two."""

    genesis: Path | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """Where the coordinator role keeps what it has certified. `etcd`: the endpoints of one cluster."""

    store: str = "embedded"
    etcd: tuple[str, ...] = ("http://127.0.0.1:2379",)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """All that a node is told. Paths of a file are relative to that file, others to the working directory."""

    data_dir: Path = Path("aw-data")
    roles: tuple[str, ...] = ("gateway", "storage", "observer")
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/4101",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    worlds: tuple[WorldSource, ...] = ()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    limits: NodeLimits = NodeLimits()
    log_level: str = "info"
    log_format: str = "text"
    metrics_listen: str | None = None  # HOST:PORT of the Prometheus page; None: no page


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with a configuration: where, and why."""

    what: str
    why: str


class ConfigMistakes(Exception):
    """Everything that is wrong with a configuration, in the order found.

    `worlds` are those that could be read all the same: their files may be wrong too.
    """

    def __init__(self, mistakes: Sequence[Mistake], worlds: Sequence[WorldSource] = ()) -> None:
        super().__init__("; ".join(f"{mistake.what}: {mistake.why}" for mistake in mistakes))
        self.mistakes = tuple(mistakes)
        self.worlds = tuple(worlds)


@dataclass(frozen=True, slots=True)
class Effective:
    """A configuration, and for each key (`limits.<name>` for limits) where its value came from."""

    config: NodeConfig
    origins: Mapping[str, str]


def read_config(
    text: str | None = None,
    file_name: str = "node.toml",
    *,
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Effective:
    """The effective configuration. Raises ConfigMistakes with all mistakes of all sources.

    `flags` maps keys as in the file (`world` a list of ids or files, `limits.<name>` a number) to what was given; a
    None or empty tuple was not given. `env` may be the whole environment.
    """
    reading = _Reading()
    if text is not None:
        reading.take_file(text, file_name)
    reading.take_env(env or {})
    reading.take_flags(flags or {})
    return reading.finish()


def parse_toml(text: str, file_name: str) -> dict[str, Any]:
    """A TOML document of at most CONFIG_BYTES_MAX bytes. Raises ConfigMistakes (one)."""
    if len(text.encode("utf-8", "surrogatepass")) > CONFIG_BYTES_MAX:
        raise ConfigMistakes([Mistake(file_name, f"is over {CONFIG_BYTES_MAX} bytes (config_bytes_max)")])
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of an integer or a nesting that Python does not read
        raise ConfigMistakes([Mistake(file_name, f"is not TOML: {error}")]) from error


def check_variables(env: Mapping[str, str]) -> None:
    """Raise ConfigMistakes for every AW_* variable that nothing reads, with the nearest known name."""
    mistakes = [_unknown_variable(name) for name in sorted(env) if _is_unknown(name)]
    if mistakes:
        raise ConfigMistakes(mistakes)


def _is_unknown(name: str) -> bool:
    return name.startswith(ENV_PREFIX) and name not in _ENV_KEYS and name not in ENV_ELSEWHERE


def _unknown_variable(name: str) -> Mistake:
    near = difflib.get_close_matches(name, (*_ENV_KEYS, *ENV_ELSEWHERE), n=1)
    hint = f"; nearest: {near[0]}" if near else "; see docs/operations.md for the known ones"
    return Mistake(name, f"unknown variable{hint}")


def looks_like_world_id(text: str) -> bool:
    """True for 32 characters of lower-case base32."""
    return _WORLD_ID.fullmatch(text) is not None


def nearest(word: str, known: Sequence[str]) -> str:
    """`; nearest: NAME`, or `; known: ...` when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; nearest: {near[0]}" if near else f"; known: {', '.join(known)}"


# --- reading one value -------------------------------------------------------------------------------------


class _Bad(Exception):
    def __init__(self, why: str, where: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.where = where


def _text(value: object, base: Path) -> str:
    del base
    if not isinstance(value, str) or not 1 <= len(value) <= TEXT_CHARS_MAX or not value.isprintable():
        raise _Bad(f"must be text of 1..{TEXT_CHARS_MAX} printable characters")
    return value


def _path(value: object, base: Path) -> Path:
    return base / _text(value, base)


def _word_of(words: Sequence[str], what: str) -> Callable[[object, Path], str]:
    def read(value: object, base: Path) -> str:
        word = _text(value, base)
        if word not in words:
            raise _Bad(f"{word!r} is no {what}{nearest(word, words)}")
        return word

    return read


def _addr(parse: Callable[[str], object]) -> Callable[[object, Path], str]:
    def read(value: object, base: Path) -> str:
        text = _text(value, base)
        try:
            parse(text)
        except ValueError as error:
            raise _Bad(f"{text!r} {error}") from error
        return text

    return read


def parse_metrics_addr(text: str) -> tuple[str, int]:
    """`127.0.0.1:9464` or `[::1]:9464` as host and port: one address, nothing else is bound. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})", text, re.ASCII)
    if found is None or int(found[3]) > 65_535:
        raise ValueError("must be IPV4:PORT or [IPV6]:PORT, as 127.0.0.1:9464")
    host = found[1] or found[2]
    try:
        version = ipaddress.ip_address(host).version
    except ValueError as error:
        raise ValueError(f"has {host!r} where an IP address is needed") from error
    if (version == 6) is not bool(found[1]):
        raise ValueError("must be IPV4:PORT or [IPV6]:PORT, as 127.0.0.1:9464")
    return host, int(found[3])


def _list_of(
    read_item: Callable[[object, Path], Any], count_min: int, count_max: int
) -> Callable[[object, Path], tuple[Any, ...]]:
    def read(value: object, base: Path) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _Bad("must be a list")
        if not count_min <= len(value) <= count_max:
            raise _Bad(f"must have {count_min}..{count_max} items, not {len(value)}")
        items: list[Any] = []
        for index, item in enumerate(value):
            try:
                read_one = read_item(item, base)
            except _Bad as bad:
                raise _Bad(bad.why, f"[{index}]{bad.where}") from bad
            if read_one in items:
                raise _Bad(f"{item!r} is there twice", f"[{index}]")
            items.append(read_one)
        return tuple(items)

    return read


def _own_addrs(value: object, base: Path) -> tuple[str, ...]:
    addrs: tuple[str, ...] = _list_of(_addr(parse_listen_addr), 0, ADDRS_MAX)(value, base)
    if addrs and all(parse_listen_addr(addr).is_websocket for addr in addrs):
        raise _Bad("needs one without /ws too: /ws is for browsers, and peers dial TCP alone")
    return addrs


def _world(value: object, base: Path) -> WorldSource:
    if isinstance(value, str):
        return (
            WorldSource(id=value) if looks_like_world_id(value) else WorldSource(genesis=_path(value, base))
        )
    if not isinstance(value, dict):
        raise _Bad('must be a table with `genesis = "FILE"` or `id = "WORLD ID"`')
    for key in value:
        if key not in ("genesis", "id"):
            raise _Bad(f"unknown key{nearest(str(key), ('genesis', 'id'))}", f".{key}")
    if len(value) != 1:
        raise _Bad("needs exactly one of `genesis` and `id`")
    if "genesis" in value:
        return WorldSource(genesis=_path(value["genesis"], base))
    world_id = value["id"]
    if not isinstance(world_id, str) or not looks_like_world_id(world_id):
        raise _Bad(f"must be {world_limits.WORLD_ID_CHARS} characters of a-z and 2-7", ".id")
    return WorldSource(id=world_id)


def _etcd_endpoint(value: object, base: Path) -> str:
    text = _text(value, base)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _Bad(f"{text!r} {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port:
        raise _Bad(f"{text!r} is not http://HOST:PORT or https://HOST:PORT")
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise _Bad(f"{text!r} must be HOST and PORT alone")
    return f"{parts.scheme}://{parts.netloc}"


def _limit_reader(name: str) -> Callable[[object, Path], int]:
    metadata = next(item.metadata for item in fields(NodeLimits) if item.name == name)
    low, high = metadata["low"], metadata["high"]

    def read(value: object, base: Path) -> int:
        del base
        if (
            isinstance(value, str)
            and re.fullmatch(r"-?[0-9]+(_[0-9]+)*", value, re.ASCII)
            and len(value) < 40
        ):
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise _Bad(f"{value!r} is not an integer {low}..{high}")
        return value

    return read


_LIMIT_NAMES: Final = tuple(item.name for item in fields(NodeLimits))
_READERS: Final[dict[str, Callable[[object, Path], Any]]] = {
    "data_dir": _path,
    "roles": _list_of(_word_of(ROLES, "role"), 1, len(ROLES)),
    "listen": _own_addrs,
    "announce": _own_addrs,
    "bootstrap": _list_of(_addr(parse_peer_addr), 0, ADDRS_MAX),
    "world": _list_of(_world, 0, WORLDS_MAX),
    "log_level": _word_of(LOG_LEVELS, "log level"),
    "log_format": _word_of(LOG_FORMATS, "log format"),
    "coordinator.store": _word_of(LEASE_STORES, "store"),
    "coordinator.etcd": _list_of(_etcd_endpoint, 1, ETCD_ENDPOINTS_MAX),
    "metrics_listen": _addr(parse_metrics_addr),
    **{f"limits.{name}": _limit_reader(name) for name in _LIMIT_NAMES},
}
# Tables of the file, and what their keys are called elsewhere.
_TABLES: Final = {
    "metrics": {"listen": "metrics_listen"},
    "coordinator": {"store": "coordinator.store", "etcd": "coordinator.etcd"},
}
_IN_TABLES: Final = {key for table in _TABLES.values() for key in table.values()}
_TOP_KEYS: Final = (
    *(key for key in _READERS if "." not in key and key not in _IN_TABLES),
    *_TABLES,
    "limits",
)
_LISTS: Final = ("roles", "listen", "announce", "bootstrap", "world", "coordinator.etcd")
_ENV_KEYS: Final = {
    f"{ENV_PREFIX}{key.upper().replace('.', '_')}": key for key in _READERS if not key.startswith("limits.")
} | {f"{ENV_LIMIT_PREFIX}{name.upper()}": f"limits.{name}" for name in _LIMIT_NAMES}
FLAG_NAMES: Final = {
    "data_dir": "--data-dir",
    "roles": "--role",
    "listen": "--listen",
    "announce": "--announce",
    "bootstrap": "--bootstrap",
    "world": "--world",
    "log_level": "--log-level",
    "log_format": "--log-format",
    "coordinator.store": "--coordinator-store",
    "coordinator.etcd": "--coordinator-etcd",
    "metrics_listen": "--metrics-listen",
}


class _Reading:
    """Values found so far, later sources over earlier ones, and every mistake on the way."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins = dict.fromkeys(_READERS, "default")
        self._mistakes: list[Mistake] = []

    def take_file(self, text: str, file_name: str) -> None:
        """Keys of a TOML document; its paths are relative to the file's folder."""
        try:
            document = parse_toml(text, file_name)
        except ConfigMistakes as error:
            self._mistakes += error.mistakes
            return
        base = Path(file_name).parent
        for key, value in document.items():
            if key not in _TOP_KEYS:
                self._mistakes.append(Mistake(f"{file_name}: {key}", f"unknown key{nearest(key, _TOP_KEYS)}"))
            elif key == "limits":
                self._take_limits(value, file_name)
            elif key in _TABLES:
                self._take_table(key, value, file_name)
            else:
                self._take(key, value, file_name, f"{file_name}: {key}", base)

    def _take_limits(self, table: object, file_name: str) -> None:
        if not isinstance(table, dict):
            self._mistakes.append(Mistake(f"{file_name}: limits", "must be a table"))
            return
        for name, value in table.items():
            if name in _LIMIT_NAMES:
                self._take(f"limits.{name}", value, file_name, f"{file_name}: limits.{name}", Path())
            else:
                self._mistakes.append(Mistake(f"{file_name}: limits.{name}", _unknown_limit(name)))

    def _take_table(self, key: str, table: object, file_name: str) -> None:
        if not isinstance(table, dict):
            self._mistakes.append(Mistake(f"{file_name}: {key}", "must be a table"))
            return
        known = _TABLES[key]
        for name, value in table.items():
            what = f"{file_name}: {key}.{name}"
            if name in known:
                self._take(known[name], value, file_name, what, Path())
            else:
                self._mistakes.append(Mistake(what, f"unknown key{nearest(name, tuple(known))}"))

    def take_env(self, env: Mapping[str, str]) -> None:
        """AW_<KEY> and AW_LIMIT_<NAME>; lists are separated by commas."""
        for name in sorted(env):
            if not name.startswith(ENV_PREFIX) or name in ENV_ELSEWHERE:
                continue
            key = _ENV_KEYS.get(name)
            if key is None:
                self._mistakes.append(_unknown_variable(name))
            else:
                self._take(key, _split(env[name]) if key in _LISTS else env[name], name, name, Path())

    def take_flags(self, flags: Mapping[str, object]) -> None:
        """What the command line gave, by key."""
        for key, value in flags.items():
            if value is None or value == ():
                continue
            flag = FLAG_NAMES.get(key, "--limit")
            if key.startswith("limits.") and key not in _READERS:
                name = key.removeprefix("limits.")
                self._mistakes.append(Mistake(f"--limit {name}", _unknown_limit(name)))
                continue
            what = f"{flag} {key.removeprefix('limits.')}" if flag == "--limit" else flag
            given = value
            if key == "roles" and isinstance(value, list | tuple):
                given = [word for item in value for word in _split(str(item))]
            self._take(key, given, flag, what, Path())

    def _take(self, key: str, value: object, origin: str, what: str, base: Path) -> None:
        try:
            self._values[key] = _READERS[key](value, base)
            self._origins[key] = origin
        except _Bad as bad:
            self._mistakes.append(Mistake(f"{what}{bad.where}", bad.why))

    def finish(self) -> Effective:
        if self._mistakes:
            raise ConfigMistakes(self._mistakes, self._values.get("world", ()))
        values = dict(self._values)
        chosen = {name: values.pop(f"limits.{name}") for name in _LIMIT_NAMES if f"limits.{name}" in values}
        of_coordinator = {
            name: values.pop(key) for name, key in _TABLES["coordinator"].items() if key in values
        }
        if "world" in values:
            values["worlds"] = values.pop("world")
        coordinator, limits = CoordinatorConfig(**of_coordinator), NodeLimits(**chosen)
        return Effective(NodeConfig(**values, coordinator=coordinator, limits=limits), self._origins)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _unknown_limit(name: str) -> str:
    fixed = {key.lower() for module in (names, world_limits) for key in vars(module) if key.isupper()}
    if name in fixed:
        return f"is a limit that a node cannot set; settable: {', '.join(_LIMIT_NAMES)}"
    return f"unknown limit{nearest(name, _LIMIT_NAMES)}"
