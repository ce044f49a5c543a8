"""From flights to a world and signed envelopes: who owns what, and which actions a flight is made of.

Hides: nonces and balances. Guarantees: pure; equal flights, seed and time give equal envelopes; every action of the
plan is one that the kernel applies when the envelopes of each actor are taken in order.

A carrier's key owns its aircraft; one more key owns the airports. A flight is one atomic envelope of its carrier:
register the aircraft at first sight (its passengers endowed from the carrier's genesis balance), fly it empty to the
origin when it stands elsewhere (the data has departures from New York only), fly to the destination, and let the
passengers off there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, Final

from bootstrap.demo.flights import CM_PER_DEGREE, Airport, Flight
from runtime import codec, limits
from runtime import genesis as genesis_module
from runtime.keys import SigningKey
from runtime.records import ActionEnvelope, Bounds, Envelope, Genesis, WorldLimits, seal

AIRPORTS_OWNER: Final = "airports"
PASSENGERS: Final = "passengers"
PASSENGERS_MIN, PASSENGERS_SPAN = 40, 140
ENVELOPE_LIFE_BLOCKS: Final = 50_000
WORLD_NAME: Final = "airtraffic"


@dataclass(frozen=True, slots=True)
class Authorities:
    """Key ids of the nodes that propose, execute and certify."""

    proposer: bytes
    executor: bytes
    certifier: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """The world, the envelopes that build its airports, and those of the flights, in order of departure."""

    genesis: Genesis
    airports: tuple[Envelope, ...]
    flights: tuple[Envelope, ...]
    actions: int


def owner_seed(seed: int, owner: str) -> bytes:
    """The Ed25519 seed of a carrier's key, or of the airports'."""
    return codec.content_id(f"aw demo {seed} {owner}".encode())


def owner_key(seed: int, owner: str) -> SigningKey:
    """The key of a carrier, or of the airports."""
    return SigningKey(owner_seed(seed, owner))


def aircraft_id(flight: Flight) -> str:
    """Agent id of a flight's aircraft; a tail number that two carriers fly is two agents."""
    return f"{flight.carrier}.{flight.tail}".lower()


def airport_id(code: str) -> str:
    """Agent id of an airport."""
    return f"airport.{code}".lower()


def passengers_of(flight: Flight) -> int:
    """How many are on board: the data does not say, so the flight's hash does."""
    text = f"{flight.month} {flight.day} {flight.departure} {flight.carrier} {flight.number} {flight.tail}"
    return PASSENGERS_MIN + int.from_bytes(codec.content_id(text.encode())[:4], "big") % PASSENGERS_SPAN


def make_plan(
    flights: Sequence[Flight], airports: Mapping[str, Airport], nodes: Authorities, seed: int, created_ms: int
) -> Plan:
    """The whole demo before anything runs."""
    by_aircraft: Counter[str] = Counter()
    by_carrier: Counter[str] = Counter()
    for flight in flights:
        by_aircraft[aircraft_id(flight)] += passengers_of(flight)
        by_carrier[flight.carrier] += passengers_of(flight)
    used = sorted({code for flight in flights for code in (flight.origin, flight.destination)})
    genesis = _genesis(by_carrier, [airports[code] for code in used], nodes, seed, created_ms)
    writer = _Writer(genesis.header.world_id, seed, created_ms)
    for first in range(0, len(used), limits.ACTIONS_PER_ENVELOPE_MAX):
        chunk = used[first : first + limits.ACTIONS_PER_ENVELOPE_MAX]
        actions = [("register_agent", _at(airport_id(code), airports[code])) for code in chunk]
        writer.write(AIRPORTS_OWNER, actions)
    registered = writer.take()
    stands: dict[str, str] = {}
    for flight in flights:
        writer.write(flight.carrier, _flight_actions(flight, airports, stands, by_aircraft))
    flown = writer.take()
    return Plan(genesis, registered, flown, sum(len(item.record.actions) for item in (*registered, *flown)))


def _flight_actions(
    flight: Flight, airports: Mapping[str, Airport], stands: dict[str, str], by_aircraft: Mapping[str, int]
) -> list[tuple[str, dict[str, Any]]]:
    """`stands` says where each aircraft is, and is moved on."""
    aircraft = aircraft_id(flight)
    origin, destination = airports[flight.origin], airports[flight.destination]
    actions: list[tuple[str, dict[str, Any]]] = []
    if aircraft not in stands:
        actions.append(
            ("register_agent", {**_at(aircraft, origin), "endow": {PASSENGERS: by_aircraft[aircraft]}})
        )
    elif stands[aircraft] != flight.origin:
        actions.append(("move_agent", _at(aircraft, origin)))
    actions.append(("move_agent", _at(aircraft, destination)))
    off = {
        "from_agent": aircraft,
        "to_agent": airport_id(flight.destination),
        "kind": PASSENGERS,
        "amount": passengers_of(flight),
    }
    actions.append(("transfer_resource", off))
    stands[aircraft] = flight.destination
    return actions


def _at(agent_id: str, place: Airport) -> dict[str, Any]:
    return {"agent_id": agent_id, "x_cm": place.x_cm, "y_cm": place.y_cm, "z_cm": 0}


def _genesis(
    by_carrier: Mapping[str, int], used: Sequence[Airport], nodes: Authorities, seed: int, created_ms: int
) -> Genesis:
    longest = max(
        (one.x_cm - other.x_cm) ** 2 + (one.y_cm - other.y_cm) ** 2 for one in used for other in used
    )
    half_x, half_y = 180 * CM_PER_DEGREE, 90 * CM_PER_DEGREE
    return genesis_module.make_genesis(
        name=WORLD_NAME,
        root_keys=[owner_key(seed, "root").identity],
        root_threshold=1,
        proposers=[nodes.proposer],
        executors=[nodes.executor],
        certifier=nodes.certifier,
        body=genesis_module.make_body(
            bounds=Bounds(-half_x, half_x, -half_y, half_y, 0, 0),
            max_move_cm=isqrt(longest) + 1,
            resource_kinds=[PASSENGERS],
            balances={
                (owner_key(seed, carrier).identity, PASSENGERS): amount
                for carrier, amount in by_carrier.items()
            },
            world_limits=_long_lived(),
        ),
        created_ms=created_ms,
    )


def _long_lived() -> WorldLimits:
    """The demo signs everything at its start, so that envelopes must outlive a slow machine."""
    return replace(genesis_module.default_limits(), expiry_blocks_max=limits.EXPIRY_BLOCKS_CEILING)


class _Writer:
    """Signs envelopes, counting each owner's nonces."""

    def __init__(self, world_id: str, seed: int, created_ms: int) -> None:
        self._world_id = world_id
        self._seed = seed
        self._created_ms = created_ms
        self._keys: dict[str, SigningKey] = {}
        self._nonces: defaultdict[str, int] = defaultdict(int)
        self._written: list[Envelope] = []

    def write(self, owner: str, actions: Sequence[tuple[str, dict[str, Any]]]) -> None:
        key = self._keys.setdefault(owner, owner_key(self._seed, owner))
        record = ActionEnvelope(
            world_id=self._world_id,
            actor_id=key.identity,
            nonce=self._nonces[owner],
            expires_at_height=ENVELOPE_LIFE_BLOCKS,
            timestamp_ms=self._created_ms + len(self._written),  # departures keep their order in a batch
            atomic=True,
            actions=tuple(actions),
        )
        self._nonces[owner] += 1
        self._written.append(seal(record, key))

    def take(self) -> tuple[Envelope, ...]:
        """What was written since the last time."""
        written, self._written = tuple(self._written), []
        return written
