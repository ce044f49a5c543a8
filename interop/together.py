"""What one language shows by itself, and what a mixed network does.

Hides: the Python world that foreign peers act in. Guarantees: that world is made of real nodes, each a process; what a
foreign peer stores is verified by replaying it from genesis, where nobody else has a block or a blob of it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from bootstrap.demo.processes import Network, end_process, free_ports
from bootstrap.node import open_client, verify_world
from interop.driver import CommandFailed, Ground, Peer
from interop.liar import Liar, open_liar
from interop.lies import HEAD_LIES, PROMISE_LIES, RECEIPT_LIES, STATE_LIES, WORLD_LIES
from interop.on_the_wire import on_the_wire
from interop.slow_links import slow_links
from interop.steps import SETTLE_S, body, connected, knows_subscriber, proved_receipt, until
from interop.strangers import strangers
from interop.vectors_expected import expected_refusals, tampered
from interop.worlds import HandMadeWorld
from p2p import names
from p2p.identity import Identity
from runtime import codec
from runtime import genesis as genesis_module
from runtime.keys import SigningKey
from runtime.records import Bounds, Genesis

VECTORS: Final = Path(__file__).parent / "vectors"
WAIT_MS: Final = 60_000
GENESIS_FILE: Final = "world.genesis"
LAYOUT: Final = {
    "index": ("index",),  # has no blobs: when the other one is stopped, nobody of this world has any
    "world": ("gateway", "sequencer", "coordinator", "executor", "storage"),
}
LIES_ABOUT: Final[dict[str, Iterable[str]]] = {
    "head": HEAD_LIES,
    "state_proof": STATE_LIES,
    "receipt_proof": RECEIPT_LIES,
    "submit": PROMISE_LIES,
    "mirror": WORLD_LIES,
}
LATE: Final = {"observer": ("observer",)}
Solo: TypeAlias = Callable[..., Awaitable[None]]


async def vectors(ground: Ground, *, language: str) -> None:
    """Every entry of every file of interop/vectors, the refusals included; a file with a wrong one is noticed."""
    peer = await ground.start(language, 1)
    told = (await peer.do("vectors", dir=str(VECTORS)))["files"]
    files = {name.removesuffix(".json"): counts for name, counts in told.items()}
    there = {path.stem: json.loads(path.read_text()) for path in VECTORS.glob("*.json")}
    assert files.keys() == there.keys(), files
    for name, counts in files.items():
        assert counts["checked"] > 0, (name, counts)
        assert counts["refused"] >= expected_refusals(name, there[name]), (name, counts)
    for number, (name, changed) in enumerate(tampered(there)):
        folder = ground.directory / f"tampered-{number}"
        folder.mkdir()
        for other, content in there.items():
            (folder / f"{other}.json").write_text(json.dumps(changed if other == name else content))
        await peer.refused("vectors", "refused", dir=str(folder))


async def malformed(ground: Ground, *, language: str) -> None:
    """What is no command, or one in the wrong form, is told so by all of them alike, and ends nothing."""
    peer = await ground.start(language, 1)
    stranger = Identity(bytes(32)).peer_id
    made = HandMadeWorld(f"malformed-{language}")
    topic = names.topic(made.world_id, "head")
    for line in (b"no JSON", b"[]", b"7", b"{}"):
        assert (await peer.malformed(line))["kind"] == "usage", line
    for do, fields in malformed_commands(peer, names.peer_text(stranger)):
        await peer.refused(do, "usage", **fields)
    for do, fields in (
        ("identify", {"peer": names.peer_text(stranger)}),
        ("join", {"topic": topic}),
        ("dht_held", {"key": names.head_key(made.world_id)}),
    ):
        await peer.refused(do, "not_found", **fields)
    await peer.do("disconnect", peer=names.peer_text(stranger))
    await peer.do("peers", unknown=0.1 + 0.2)  # more digits than any integer of theirs


def malformed_commands(peer: Peer, stranger: str) -> list[tuple[Any, dict[str, Any]]]:
    """Fields that are missing, of another type, or out of range."""
    asked = {"peer": stranger, "method": "x_echo", "body": "a0"}
    signed = {"peer": stranger, "world_id": "a" * 32, "nonce": 0, "expires_at_height": 9, "timestamp_ms": 1}
    fetched = {"peer": stranger, "content_hash": "00" * 32}
    short = "00" * 31
    return [
        ("no_such_command", {}),
        (7, {}),
        (["peers"], {}),
        ({"toString": None}, {}),
        ("dial", {}),
        ("dial", {"addr": "/ip4/1.2.3"}),
        ("dial", {"addr": peer.addr.split("/p2p/")[0]}),
        ("identify", {"peer": "0OIl"}),
        ("request", {"peer": stranger, "method": "x_echo"}),
        ("request", {**asked, "body": "A0"}),
        ("request", {**asked, "body": "a"}),
        ("request", {**asked, "body": 7}),
        ("request", {**asked, "method": "no method"}),
        ("request", {**asked, "timeout_ms": -1}),
        ("requests", {**asked, "count": 0, "in_flight": 1}),
        ("requests", {**asked, "count": 1, "in_flight": 0}),
        ("send_raw", {"peer": stranger}),
        ("put_blob", {}),
        ("put_blob", {"seed": 1}),
        ("put_blob", {"seed": 1, "size": (64 << 20) + 1}),
        ("fetch", {**fetched, "content_hash": short}),
        ("fetch", {**fetched, "length": -1}),
        ("forge_blob", {"content_hash": short, "data": ""}),
        ("world", {"genesis": "zz"}),
        ("join", {"topic": "head"}),
        ("join", {"topic": f"aw.{'a' * 32}.no_kind"}),
        ("mesh", {"topic": "aw.x.head"}),
        ("publish", {"topic": "head", "data": ""}),
        ("dht_put", {"key": "/aw/world/x/head", "value": None}),
        ("dht_get", {}),
        ("provide", {"content_hash": short}),
        ("find_providers", {"content_hash": short}),
        ("check_head", {}),
        ("state_proof", {"peer": stranger, "world_id": "a" * 32, "namespace": "agents", "key": 7}),
        ("receipt_proof", {"peer": stranger, "world_id": "a" * 32, "envelope_hash": short}),
        ("submit", {**signed, "seed": short, "atomic": True, "actions": []}),
        ("submit", {**signed, "seed": "00" * 32, "atomic": 1, "actions": []}),
        ("submit", {**signed, "seed": "00" * 32, "atomic": True, "actions": [], "nonce": "x"}),
        ("submit", {**signed, "seed": "00" * 32, "actions": []}),
        ("submit", {**signed, "seed": "00" * 32, "atomic": True}),
        ("submit", {**signed, "seed": "00" * 32, "atomic": True, "actions": 7}),
        ("submit", {**signed, "seed": "00" * 32, "atomic": True, "actions": [["move"]]}),
        ("submit", {**signed, "seed": "00" * 32, "atomic": True, "actions": [[7, {}]]}),
        ("submit", {**signed, "seed": "00" * 32, "atomic": True, "actions": ["ab"]}),
        ("vectors", {"dir": "/no/such/folder"}),
    ]


async def ends(ground: Ground, *, language: str) -> None:
    """A peer ends by itself, with exit code 0, however it is told to, whatever it is doing then."""
    other = await ground.start(language, 1)
    for seed, end in enumerate((Peer.quit, Peer.hang_up, Peer.stop), start=2):
        peer = await ground.start(language, seed)
        await connected(peer, other)
        # Longer than the peer has. Whether this is answered before the end is left open.
        wait = body(ms=WAIT_MS)
        await peer.begin("request", peer=other.peer_id, method="x_wait", body=wait, timeout_ms=WAIT_MS)
        await peer.do("request", peer=other.peer_id, method="x_echo", body="a0")
        code = await end(peer)
        assert code == 0, f"{end.__name__}: exit code {code}"
        await other.event("disconnected", peer=peer.peer_id)


@dataclass(frozen=True, slots=True)
class PythonWorld:
    """A running world of real nodes, and one actor with fuel."""

    network: Network
    genesis: Genesis
    actor_seed: bytes
    told: list[str] = field(default_factory=list)  # hashes of the envelopes that were submitted

    @property
    def world_id(self) -> str:
        return self.genesis.header.world_id

    def addr(self, node: str) -> str:
        return self.network.nodes[node].addr

    @property
    def browser_addr(self) -> str:
        """Where a browser can dial the node that has the world, where `open_world` was told so."""
        node = self.network.nodes["world"]
        return f"{node.also_listen[0]}/p2p/{names.peer_text(node.identity.peer_id)}"


@asynccontextmanager
async def open_world(directory: Path, name: str, *, for_browsers: bool = False) -> AsyncIterator[PythonWorld]:
    """Two node processes with every role between them; `for_browsers`: the world's listens on /ws too."""
    network = Network(directory, layout=LAYOUT)
    if for_browsers:
        network.nodes["world"].also_listen = (f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}/ws",)
    keys = {node: process.identity.peer_id for node, process in network.nodes.items()}
    seed = codec.content_id(name.encode())
    actor = SigningKey(seed)
    genesis = genesis_module.make_genesis(
        name=name,
        root_keys=[SigningKey(bytes(32)).identity],
        root_threshold=1,
        proposers=[keys["world"]],
        executors=[keys["world"]],
        certifier=keys["world"],
        body=genesis_module.make_body(
            bounds=Bounds(0, 1_000_000, 0, 1_000_000, 0, 0),
            max_move_cm=1_000_000,
            resource_kinds=["fuel"],
            balances={(actor.identity, "fuel"): 1_000},
        ),
        created_ms=time.time_ns() // 1_000_000,
    )
    genesis_file = trio.Path(directory / GENESIS_FILE)
    await genesis_file.write_bytes(genesis.to_bytes())
    network.configure(Path(genesis_file))
    async with network.running():
        yield PythonWorld(network, genesis, seed)


async def world(ground: Ground, *, language: str) -> None:
    """Act in a Python world and prove what became of it; store the world and be the only one to serve it."""
    async with open_world(ground.directory, f"for-{language}") as running:
        peer = await ground.start(language, 1)
        for node in ("index", "world"):
            await peer.do("dial", addr=running.addr(node))
        assert (await peer.do("world", genesis=running.genesis.to_bytes().hex()))[
            "world_id"
        ] == running.world_id
        node = names.peer_text(running.network.nodes["world"].identity.peer_id)
        await act_and_prove(peer, node, running)
        await see_through(ground, language, running)
        height = await store(peer, node, running)
        await serve_a_verifier(peer, height, running)
        await serve_an_observer(peer, height, running)
        await serve_peers(ground, peer, height, running)


async def act_and_prove(peer: Peer, node: str, running: PythonWorld) -> None:
    """Submit, wait for the block, prove receipt and state by an attested head."""
    world_id, seed = running.world_id, running.actor_seed.hex()
    sent: dict[str, Any] = {"world_id": world_id, "seed": seed, "expires_at_height": 1_000, "atomic": True}
    register = [
        "register_agent",
        {"agent_id": "abroad", "x_cm": 1, "y_cm": 2, "z_cm": 0, "endow": {"fuel": 10}},
    ]
    move = ["move_agent", {"agent_id": "abroad", "x_cm": 30, "y_cm": 40, "z_cm": 0}]
    codes = [[("Applied", 0)], [("AtomicRolledBack", 0), ("UnknownAction", 1)]]
    # One after the other, so that each has a block of its own.
    for nonce, actions in enumerate(
        ([register], [move, ["say", {"text": "hello", "data": {"hex": "00ff"}}]])
    ):
        now_ms = time.time_ns() // 1_000_000
        submitted = await peer.do(
            "submit", peer=node, nonce=nonce, timestamp_ms=now_ms, actions=actions, **sent
        )
        assert submitted["outcome"] == "accepted", submitted
        running.told.append(submitted["envelope_hash"])
        proved = await proved_receipt(peer, node, world_id, submitted["envelope_hash"])
        assert [(one["code"], one["index"]) for one in proved["receipts"]] == codes[nonce], proved
        assert proved["head_height"] >= proved["height"] >= nonce + 1
        assert proved["trust"] == "attested"
    ask: dict[str, Any] = {"peer": node, "world_id": world_id, "namespace": "agents"}
    found = await peer.do("state_proof", key=b"abroad".hex(), **ask)
    cell = codec.decode(bytes.fromhex(found["value"]), 4_096)
    owner = SigningKey(running.actor_seed).identity
    assert cell == {"owner": owner, "x_cm": 1, "y_cm": 2, "z_cm": 0}, cell
    assert "value" not in await peer.do("state_proof", key=b"nobody".hex(), **ask)

    async def head_is_in_the_dht() -> bool:
        try:
            head = await peer.do("head", world_id=world_id)
        except CommandFailed as failure:
            if failure.kind not in {"not_found", "timeout"}:
                raise
            return False
        return bool(head["height"] >= proved["height"])

    await until(head_is_in_the_dht, "the head in the DHT", SETTLE_S)


async def see_through(ground: Ground, language: str, running: PythonWorld) -> None:
    """A liar between a new peer and the node: what it says that is true is believed, and no lie is."""
    asked: dict[str, dict[str, Any]] = {
        "head": {},
        "state_proof": {"namespace": "agents", "key": b"abroad".hex()},
        "receipt_proof": {"envelope_hash": running.told[-1]},
        "submit": {
            "seed": running.actor_seed.hex(),
            "nonce": len(running.told),
            "expires_at_height": 1_000,
            "timestamp_ms": time.time_ns() // 1_000_000,
            "atomic": False,
            "actions": [["say", {"text": "to a liar"}]],
        },
        "mirror": {},
    }
    async with open_client([running.addr("world")]) as client, open_liar(client) as liar:
        peer = await ground.start(language, 3)
        await peer.do("dial", addr=liar.addr)
        for do, fields in asked.items():
            # What was mirrored once is not asked for again.
            for lie in (*([] if do == "mirror" else [""]), *LIES_ABOUT[do], ""):
                await believes(peer, liar, do, lie, {"world_id": running.world_id, **fields})
        await peer.stop()


async def believes(peer: Peer, liar: Liar, do: str, lie: str, fields: dict[str, Any]) -> None:
    """With a lie the answer is refused; without one it is taken. Raises AssertionError."""
    liar.lie = lie
    if not lie:
        await peer.do(do, peer=liar.peer_id, **fields)
        return
    try:
        found = await peer.refused(do, "refused", peer=liar.peer_id, **fields)
    except (AssertionError, CommandFailed) as error:
        raise AssertionError(f"{lie}: {error}") from error
    assert found["message"], found


async def store(peer: Peer, node: str, running: PythonWorld) -> int:
    """Mirror, publish and provide, and stop the world's own provider; the height that was mirrored."""
    world_id = running.world_id
    height = int((await peer.do("mirror", world_id=world_id, peer=node))["height"])
    head = await peer.do("head", world_id=world_id, peer=node)
    assert height >= 1
    await peer.do("dht_put", key=names.head_key(world_id), value=head["head"])
    await peer.do("provide", content_hash=genesis_module.world_content_id(world_id).hex())
    stopped = running.network.nodes["world"]
    stopped.may_start = trio.Event()
    assert stopped.process is not None
    await end_process(stopped.process)
    return height


async def serve_a_verifier(peer: Peer, height: int, running: PythonWorld) -> None:
    """Who knows the world id and the index replays all of it, with every blob from the peer."""
    before, verified = (await peer.do("served"))["blobs"], None
    with trio.fail_after(SETTLE_S):
        while verified is None or verified.height < height:
            verified = await verify_world(running.world_id, [running.addr("index")], lambda _done, _of: None)
    assert verified.trust == "replayed_from_genesis"
    assert verified.blocks_replayed >= height, verified
    assert (await peer.do("served"))["blobs"] - before >= height, "somebody else has served them"


async def serve_an_observer(peer: Peer, height: int, running: PythonWorld) -> None:
    """A node that is new, in a process of its own, finds the peer by the DHT and verifies all of it."""
    directory = running.network.directory / "late"
    late = Network(directory, layout=LATE)
    late.configure(running.network.directory / GENESIS_FILE, known=[running.addr("index")])
    async with late.running(), open_client([late.nodes["observer"].addr]) as client:

        async def has_verified() -> bool:
            worlds = (await client.status()).worlds
            return bool(worlds) and (worlds[0].verified or 0) >= height

        await until(has_verified, f"a new observer verifies what {peer.name} serves", SETTLE_S)


async def serve_peers(ground: Ground, peer: Peer, height: int, running: PythonWorld) -> None:
    """A peer of each language mirrors the world from this one."""
    for number, language in enumerate(ground.commands, start=10):
        reader = await ground.start(language, number)
        await reader.do("dial", addr=peer.addr)
        mirrored = await reader.do("mirror", world_id=running.world_id, peer=peer.peer_id)
        assert mirrored["height"] == height, (language, mirrored)
        await reader.stop()


async def mixed(ground: Ground, *, languages: list[str]) -> None:
    """One peer of each language in a line: gossip, records, providers and blobs reach from end to end."""
    line = [await ground.start(language, number) for number, language in enumerate(languages, start=1)]
    for one, other in itertools.pairwise(line):
        await connected(one, other)
    made = HandMadeWorld("mixed")
    await gossip_reaches_all(line, made)
    for height, (one, other) in enumerate(((line[0], line[-1]), (line[-1], line[0])), start=1):
        await record_reaches(one, other, made, height)
        await blob_is_found(one, other, seed=height)


async def mixed_otherwise(ground: Ground, *, languages: list[str]) -> None:
    """The line in another order, so that others are neighbours and ends."""
    await mixed(ground, languages=[*languages[1::2], *languages[0::2]])


async def gossip_reaches_all(line: list[Peer], made: HandMadeWorld) -> None:
    """What any of them publishes, each of the others judges once."""
    topic = names.topic(made.world_id, "action")
    for peer in line:
        await peer.do("world", genesis=made.genesis.to_bytes().hex())
        await peer.do("join", topic=topic)
    for one, other in itertools.pairwise(line):
        await knows_subscriber(one, other, topic)
        await knows_subscriber(other, one, topic)
    for nonce, sender in enumerate(line):
        data = made.envelope(nonce).hex()
        await sender.do("publish", topic=topic, data=data)
        for hearer in line:
            if hearer is not sender:
                await hearer.event("gossip", topic=topic, verdict="accept", data=data)
    for peer in line:
        heard = [event["data"] for event in peer.events if event["event"] == "gossip"]
        assert len(heard) == len(set(heard)), f"{peer.name} judged a message twice"


async def record_reaches(writer: Peer, reader: Peer, made: HandMadeWorld, height: int) -> None:
    """What one end puts into the DHT, the other reads."""
    key = names.head_key(made.world_id)
    await writer.do("dht_put", key=key, value=made.head(height).hex())

    async def reads() -> bool:
        try:
            found: str = (await reader.do("dht_get", key=key))["value"]
        except CommandFailed as failure:
            if failure.kind != "not_found":
                raise
            return False
        return found == made.head(height).hex()

    await until(reads, f"{reader.name} reads what {writer.name} put")


async def blob_is_found(holder: Peer, seeker: Peer, seed: int) -> None:
    """Found by its hash, dialled where its record says, fetched and checked."""
    content = (await holder.do("put_blob", seed=seed, size=256 * 1024))["content_hash"]
    await holder.do("provide", content_hash=content)
    addrs: list[str] = []

    async def finds() -> bool:
        found = (await seeker.do("find_providers", content_hash=content))["providers"]
        addrs[:] = [addr for one in found if one["peer"] == holder.peer_id for addr in one["addrs"]]
        return bool(addrs)

    await until(finds, f"{seeker.name} finds {holder.name}")
    addr = addrs[0] if "/p2p/" in addrs[0] else f"{addrs[0]}/p2p/{holder.peer_id}"
    await seeker.do("dial", addr=addr)
    assert (await seeker.do("fetch", peer=holder.peer_id, content_hash=content))["size"] == 256 * 1024


SOLO: Final[dict[str, Solo]] = {
    "vectors": vectors,
    "malformed commands": malformed,
    "start and end": ends,
    "on the wire": on_the_wire,
    "strangers": strangers,
    "a Python world": world,
}
NETWORKS: Final[dict[str, Solo]] = {
    "a mixed network": mixed,
    "the same, the other way round": mixed_otherwise,
    "slow links": slow_links,
}
