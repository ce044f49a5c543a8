"""Throw mutated bytes at every decoder of the wire: what `make fuzz` calls.

The seeds are the vectors of interop/vectors. One half of the inputs are mutated as bytes, the other half as values that
are encoded canonically again, so that the rules behind the codec are met too. A decoder may answer with a value or with
a typed refusal, nothing else; an input that costs more than CPU_S_MAX is a fault as well.

stdout: one line per fault, with the input. stderr: progress. Exit 0 when there was none, 1 otherwise, 2 on wrong use.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from p2p import frames
from p2p.errors import FrameError, RecordRefused
from p2p.websocket import ServerSide
from runtime import chain, codec, genesis, messages, rules, state
from runtime.errors import Ignored, Invalid, UnknownVersion
from runtime.schema import Record
from runtime.seals import Signed, sealed_from_bytes
from runtime.services import HeadRecords

VECTORS: Final = Path(__file__).parent.parent / "interop" / "vectors"
REFUSALS: Final = (Invalid, UnknownVersion, Ignored, FrameError, RecordRefused)
CPU_S_MAX: Final = 1.0
INPUT_BYTES_MAX: Final = 32 * 1024
SEED_BYTES_MAX: Final = 8 * 1024  # the few larger ones would take most of the time
PROGRESS: Final = 50_000
FAULTS_MAX: Final = 20
REFUSED_KEYS: Final = frozenset({"refuse", "ignore"})  # of the vectors: no decoder takes what stands there
ODD_VALUES: Final = (
    0, 1, -1, 23, 24, 255, 256, 2**31, 2**32, 2**53 - 1, 2**53, 2**63 - 1, -(2**63), True, False, None,
    "", "v", "a" * 70, "\x00", b"", b"\x00" * 32, b"\xff" * 38, [], {}, [[]], {"v": 1}, {"v": 2},
)  # fmt: skip
ODD_BYTES: Final = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x1b" + b"\xff" * 8,
    b"\x9f",
    b"\xbf",
    b"\xf6",
    b"\xfb",
    b"\xc2",
)

WEBSOCKET_HELLO: Final = (
    b"GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
WEBSOCKET_PIECE: Final = 4_096

Decoder = Callable[[bytes], object]


class Fault(NamedTuple):
    """What a decoder did with an input that it should have taken or refused."""

    decoder: str
    what: str
    data: bytes

    def __str__(self) -> str:
        shown = self.data[:2_000].hex()
        return f"{self.decoder}: {self.what} for {len(self.data)} bytes {shown}"


class Run(NamedTuple):
    """How a run ended."""

    taken: int
    refused: Counter[str]
    faults: list[Fault]
    slowest_cpu_s: float
    slowest: str


def all_records() -> Iterator[type[Record]]:
    """Every record and message body that has bytes of its own."""
    assert messages  # imported for its records
    waiting = [Record]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if "NAME" in vars(kind) and hasattr(kind, "BYTES_MAX"):
            yield kind


def decoders(world_id: str) -> dict[str, Decoder]:
    """Every way in from the wire, by name."""
    found: dict[str, Decoder] = {}
    for kind in all_records():
        found[f"record {kind.__name__}"] = kind.from_bytes
        found[f"preimage {kind.__name__}"] = kind.from_preimage
        if issubclass(kind, Signed):
            found[f"sealed {kind.__name__}"] = lambda data, kind=kind: sealed_from_bytes(kind, data)
    for topic, rule in rules.gossip_rules(world_id, 32 * 1024).items():
        found[f"gossip {topic}"] = rule
    dht = HeadRecords()
    key = f"/aw/world/{world_id}/head"
    found["dht value"] = lambda data: dht.validate(key, data)
    found["dht key"] = lambda data: dht.validate(data.decode("utf-8", "surrogateescape"), b"")
    found["frame of a request"] = read_frames
    found["websocket"] = read_websocket
    found["genesis"] = genesis.decode_genesis
    found["receipts"] = chain.decode_receipts
    found["events"] = chain.decode_events
    found["state proof"] = check_state_proof
    found["codec"] = lambda data: codec.decode(data, INPUT_BYTES_MAX, "fuzz")
    return found


def read_websocket(data: bytes) -> None:
    """What a browser's connection would bring: in place of its handshake, and behind a good one."""
    for said in (data, WEBSOCKET_HELLO + data):
        side = ServerSide()
        for start in range(0, len(said), WEBSOCKET_PIECE):
            side.feed(said[start : start + WEBSOCKET_PIECE])
            side.take()
            side.to_send()
        side.close()


def read_frames(data: bytes) -> None:
    """All frames of a stream, fed in two pieces."""
    reader = frames.FrameReader(lambda _method: 64 * 1024)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        reader.feed(piece)
        while reader.next_frame() is not frames.NEED_DATA:
            pass


def check_state_proof(data: bytes) -> None:
    """A proof, and its path walked down to a cell."""
    proof = state.StateProof.from_bytes(data)
    state.verify_state_proof(bytes(32), "agents", b"agent-0", proof)


def load_seeds(without: frozenset[str] = frozenset()) -> list[bytes]:
    """Every byte string of the vectors, each once, but for what stands under these keys."""
    found: dict[bytes, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in without:
                    walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, str) and len(value) >= 2 and len(value) <= 2 * SEED_BYTES_MAX:
            try:
                found[bytes.fromhex(value)] = None
            except ValueError:
                found[value.encode()] = None

    for path in sorted(VECTORS.glob("*.json")):
        walk(json.loads(path.read_text()))
    return list(found)


# --- mutation ----------------------------------------------------------------------------------------------


def mutated(rng: random.Random, seeds: list[bytes], values: list[Any]) -> bytes:
    """One input: half the time a value is changed, else bytes."""
    if values and rng.random() < 0.5:
        return mutated_value(rng, values)
    return mutated_bytes(rng, seeds)


def mutated_bytes(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with a few bytes changed, cut, doubled, or joined to another seed."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[min(at, len(data) - 1)] = rng.randrange(256)
            case 2:
                data[at:at] = rng.choice(ODD_BYTES)
            case 3:
                del data[at : at + rng.choice((1, 2, 8, 64))]
            case 4:
                data[at:at] = data[at : at + rng.choice((1, 8, 64, 512))]
            case 5:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 9)))
    return bytes(data[:INPUT_BYTES_MAX])


def mutated_value(rng: random.Random, values: list[Any]) -> bytes:
    """A value with one thing in it replaced, left out, doubled or added, as canonical bytes."""
    value = mutate(rng, rng.choice(values), values)
    try:
        return codec.encode(value, "fuzz")[:INPUT_BYTES_MAX]
    except (Invalid, RecursionError):  # nothing that has bytes
        return b""


def mutate(rng: random.Random, value: Any, values: list[Any]) -> Any:
    """A changed copy; goes down into maps and lists by chance."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        keys = list(value)
        key = rng.choice(keys)
        match rng.randrange(6):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, rng.choice(("v", "zzz", "nonce", "")): rng.choice(ODD_VALUES)}
            case _:
                return {**value, key: mutate(rng, value[key], values)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + value[at : at + 1] * rng.choice((2, 3, 70)) + value[at + 1 :]
            case _:
                return [*value[:at], mutate(rng, value[at], values), *value[at + 1 :]]
    if isinstance(value, bytes) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + bytes([value[at] ^ (1 << rng.randrange(8))]) + value[at + 1 :]
    return rng.choice(values) if rng.random() < 0.1 else rng.choice(ODD_VALUES)


# --- the run -----------------------------------------------------------------------------------------------


def run(inputs: int, seed: int, *, progress: bool = False) -> Run:
    """So many inputs, each to one decoder by turns; the same for the same seed."""
    rng = random.Random(seed)
    world_id = json.loads((VECTORS / "step.json").read_text())["world_id"]
    ways = list(decoders(world_id).items())
    seeds = load_seeds()
    values = _values(seeds)
    good = load_seeds(without=REFUSED_KEYS)
    fitting = {name: _fitting(decode, good) or (seeds, values) for name, decode in ways}
    taken, refused, faults, slowest, slowest_name = 0, Counter[str](), list[Fault](), 0.0, ""
    began_s = time.monotonic()
    for number in range(inputs):
        name, decode = ways[number % len(ways)]
        # Mostly what this decoder takes before it is mutated, else another's, which few checks see.
        data = mutated(rng, *(fitting[name] if rng.random() < 0.8 else (seeds, values)))
        before_s = time.thread_time()
        try:
            decode(data)
            taken += 1
        except REFUSALS as refusal:
            refused[type(refusal).__name__] += 1
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            faults.append(Fault(name, f"raised {type(error).__name__} ({error})", data))
        cost_s = time.thread_time() - before_s
        if cost_s > slowest:
            slowest, slowest_name = cost_s, name
        if cost_s > CPU_S_MAX:
            faults.append(Fault(name, f"took {cost_s:.2f} s", data))
        if len(faults) >= FAULTS_MAX:
            break
        if progress and (number + 1) % PROGRESS == 0:
            _tell(number + 1, inputs, len(faults), time.monotonic() - began_s)
    return Run(taken, refused, faults, slowest, slowest_name)


def _fitting(decode: Decoder, seeds: list[bytes]) -> tuple[list[bytes], list[Any]] | None:
    """The seeds that a decoder takes, and those of them that are values; None when there are none."""
    taken = []
    for data in seeds:
        try:
            decode(data)
        except REFUSALS:
            continue
        taken.append(data)
    return (taken, _values(taken)) if taken else None


def _values(seeds: list[bytes]) -> list[Any]:
    """What those seeds say that are canonical CBOR."""
    values = []
    for data in seeds:
        try:
            values.append(codec.decode(data, SEED_BYTES_MAX, "seed"))
        except Invalid:
            continue
    return values


def _tell(done: int, inputs: int, faults: int, took_s: float) -> None:
    print(f"{done}/{inputs} inputs, {done / took_s:.0f} a second, {faults} faults", file=sys.stderr)


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    options = parser.parse_args()
    if options.inputs < 1:
        parser.error("INPUTS is at least 1")
    began_s = time.monotonic()
    result = run(options.inputs, options.seed, progress=True)
    took_s = time.monotonic() - began_s
    for fault in result.faults:
        print(fault)
    refused = ", ".join(f"{count} {name}" for name, count in result.refused.most_common())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024
    print(
        f"{options.inputs} inputs in {took_s:.0f} s ({options.inputs / took_s:.0f} a second), seed {options.seed}: "
        f"{result.taken} taken, {refused}; {len(result.faults)} faults; "
        f"the slowest {result.slowest_cpu_s * 1_000:.0f} ms CPU ({result.slowest}); at most {memory} MiB",
        file=sys.stderr,
    )
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
