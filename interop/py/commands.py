"""The command table of docs/interop.md, each command a method.

Hides: nothing; it is the table. Guarantees: bytes are hex, peers base58; an error says its kind. What is checked is
checked by runtime/, what is sent is sent by p2p/.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio
from blake3 import blake3
from libp2p.kad_dht.common import parse_time_received
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from interop.py import raw
from interop.py.mirror import mirror
from interop.py.rules import split_topic, topic_check
from interop.py.serving import Shelf
from interop.py.vectors import check_vectors, unshown
from p2p import names
from p2p.errors import (
    AnswerTooLarge,
    NetworkError,
    RecordRefused,
    RequestFailed,
    RequestTimeout,
)
from p2p.host import Libp2pNetwork
from p2p.network import Message, Subscription, Verdict
from runtime import chain, codec, genesis, rules
from runtime.errors import Invalid, Missing, WorldError
from runtime.heads import head_order
from runtime.keys import SigningKey
from runtime.messages import BlobEnd, BlobRequest
from runtime.records import ActionEnvelope, Genesis, WorldHeadAnnounce, seal
from runtime.services.client import DistributedClient

REQUEST_MS: Final = 10_000
LOOK_S: Final = 0.01  # py-libp2p has no event for what a peer has said of itself
HASH_BYTES: Final = 32
SEED_BYTES: Final = 32
HEX: Final = re.compile(r"(?:[0-9a-f]{2})*")
FRAME_START_BYTES: Final = 16  # at most, beside method and body
METHOD: Final = re.compile(rf"[a-z_]{{1,{names.METHOD_BYTES_MAX}}}")
BLOB_BYTES_MAX: Final = 64 << 20
BLOBS_BYTES_MAX: Final = 1 << 30
Json: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[Json], None]


class Usage(Exception):
    """A command that is not known or lacks something."""


class Command(dict[str, Any]):
    """The fields of a command. What it lacks, or has in another form, raises Usage."""

    def __missing__(self, name: str) -> Any:
        raise Usage(f"{name} is needed")

    def text(self, name: str) -> str:
        """A text."""
        if type(self[name]) is not str:
            raise Usage(f"{name} must be a text")
        return str(self[name])

    def hex(self, name: str, size: int | None = None) -> bytes:
        """Bytes; of a size, where one is given."""
        text = self.text(name)
        if HEX.fullmatch(text) is None or size not in (None, len(text) // 2):
            raise Usage(f"{name} must be {'bytes' if size is None else f'{size} bytes'} in lower-case hex")
        return bytes.fromhex(text)

    def peer(self) -> bytes:
        """The peer id of whom this is about."""
        try:
            return names.peer_from_text(self["peer"])
        except (AttributeError, TypeError, ValueError):
            raise Usage("peer must be a peer id in base58") from None

    def method(self) -> str:
        """The name of a method."""
        name = self.text("method")
        if METHOD.fullmatch(name) is None:
            raise Usage(f"method: {name[:80]!r} is no name of a method")
        return name

    def request(self) -> tuple[str, bytes]:
        """Method and body of a request."""
        method, body = self.method(), self.hex("body")
        if len(method) + len(body) + FRAME_START_BYTES > names.FRAME_BYTES_MAX:
            raise Usage("body: a request larger than a frame")
        return method, body

    def wait_ms(self) -> int:
        """How long the answer may take."""
        return self.count("timeout_ms", 0) if "timeout_ms" in self else REQUEST_MS

    def count(self, name: str, least: int = 1) -> int:
        """A number of at least so many."""
        if type(self[name]) is not int or self[name] < least:
            raise Usage(f"{name} must be {least} or more")
        return int(self[name])


def error_of(error: Exception) -> Json:
    """An error as the driver is told."""
    message = str(error)
    match error:
        case RequestFailed():
            return {
                "kind": "rr",
                "message": error.message,
                "code": int(error.code),
                "name": error.code.name,
                "retry_after_ms": error.retry_after_ms,
                "detail": error.detail.hex(),
            }
        case RequestTimeout():
            kind = "timeout"
        case AnswerTooLarge():
            kind = "too_large"
        case RecordRefused():
            kind = "refused"
        case NetworkError():
            kind = "stream"
        case Missing():
            kind = "not_found"
        case WorldError():
            kind = "refused"
        case Usage():
            kind = "usage"
        case _:
            kind, message = "fault", f"{type(error).__name__}: {error}"
    return {"kind": kind, "message": message}


def _is_action(action: object) -> bool:
    return isinstance(action, list) and len(action) == 2 and isinstance(action[0], str)


def _topic(command: Command) -> str:
    """The topic of a world."""
    topic = command.text("topic")
    try:
        split_topic(topic)
    except ValueError as error:
        raise Usage(f"topic: {error}") from None
    return topic


class Commands:
    """One peer's commands. Every one may run beside every other."""

    def __init__(
        self, network: Libp2pNetwork, shelf: Shelf, say: Say, nursery: trio.Nursery, *, is_careless: bool
    ) -> None:
        self._network = network
        self._shelf = shelf
        self._say = say
        self._nursery = nursery
        self._is_careless = is_careless
        self._worlds: dict[str, Genesis] = {}
        self._topics: dict[str, Subscription] = {}
        raw.serve_by_hand(network)

    def table(self) -> dict[str, Callable[[Command], Awaitable[Json]]]:
        """Every command by its name: the methods that do not begin with an underscore."""
        own = {name: getattr(self, name) for name in vars(type(self)) if not name.startswith("_")}
        return {name: method for name, method in own.items() if name != "table"}

    # --- connections ---------------------------------------------------------------------------------------

    async def dial(self, command: Command) -> Json:
        addr = command.text("addr")
        try:
            has_peer = Multiaddr(addr).get_peer_id() is not None
        except MultiaddrError as error:
            raise Usage(f"addr: {error}") from None
        if not has_peer:
            raise Usage("addr must end in /p2p/ and a peer id")
        peer = await self._network.connect([addr])
        await self._protocols(peer)
        return {"peer": names.peer_text(peer)}

    async def identify(self, command: Command) -> Json:
        peer = command.peer()
        if peer not in self._network.peers():
            raise Missing("connection", f"to {names.peer_text(peer)}")
        protocols = await self._protocols(peer)
        return {"protocols": sorted(map(str, protocols)), "agent": ""}  # py-libp2p does not keep it

    async def _protocols(self, peer: bytes) -> list[str]:
        """What a peer speaks, once it has said so. Raises RequestTimeout."""
        store = self._network._host.get_peerstore()
        with trio.move_on_after(REQUEST_MS / 1_000):
            while ID(peer) not in store.peer_ids() or not store.get_protocols(ID(peer)):
                await trio.sleep(LOOK_S)
            return list(store.get_protocols(ID(peer)))
        raise RequestTimeout(names.peer_text(peer), "identify", REQUEST_MS)

    async def disconnect(self, command: Command) -> Json:
        # Not the library's disconnect: it forgets who dials again while it closes (swarm.py:2371).
        for connection in self._network._host.get_network().get_connections(ID(command.peer())):
            await connection.close()
        return {}

    async def peers(self, command: Command) -> Json:
        del command
        return {"peers": [names.peer_text(peer) for peer in self._network.peers()]}

    # --- request / response --------------------------------------------------------------------------------

    async def request(self, command: Command) -> Json:
        return {"body": (await self._asker(command)()).hex()}

    def _asker(self, command: Command) -> Callable[[], Awaitable[bytes]]:
        """What sends the request of a command, whose fields are read here."""
        peer, (method, body) = command.peer(), command.request()
        wait_ms = command.wait_ms()
        if command.get("one_shot"):
            return partial(raw.request_alone, self._network, peer, method, body, wait_ms)
        return partial(self._network.request, peer, method, body, deadline_ms=wait_ms)

    async def request_parts(self, command: Command) -> Json:
        peer, (method, body) = command.peer(), command.request()
        parts = size = 0
        hasher = blake3()
        async with self._network.request_parts(peer, method, body, deadline_ms=command.wait_ms()) as answer:
            while (part := await answer.part()) is not None:
                parts, size = parts + 1, size + len(part)
                hasher.update(part)
            return {"parts": parts, "bytes": size, "hash": hasher.hexdigest(), "last": answer.last.hex()}

    async def requests(self, command: Command) -> Json:
        ok, errors, left = 0, list[Json](), command.count("count")
        ask, in_flight = self._asker(command), command.count("in_flight")

        async def ask_on() -> None:
            nonlocal ok, left
            while left > 0:
                left -= 1
                try:
                    await ask()
                except NetworkError as error:
                    errors.append(error_of(error))
                else:
                    ok += 1

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(ask_on)
        found: Json = {"ok": ok, "failed": len(errors), "ms": round((time.perf_counter() - began) * 1_000)}
        return found | ({"first_error": errors[0]} if errors else {})

    async def send_raw(self, command: Command) -> Json:
        peer, data = command.peer(), command.hex("data")
        answer, end = await raw.send_raw(self._network, peer, data, command.wait_ms())
        return {"answer": answer.hex(), "end": end}

    # --- blobs ---------------------------------------------------------------------------------------------

    async def put_blob(self, command: Command) -> Json:
        if "data" in command:
            data = command.hex("data")
        else:
            seed, size = command.count("seed", 0), command.count("size", 0)
            if seed >= 1 << 64 or size > BLOB_BYTES_MAX:
                raise Usage(f"seed must be 8 bytes, size at most {BLOB_BYTES_MAX}")
            data = blake3(seed.to_bytes(8, "big")).digest(length=size)
        return {"content_hash": self._keep(data).hex()}

    def _keep(self, data: bytes) -> bytes:
        content = codec.content_id(data)
        self._hold(content, data)
        return content

    def _hold(self, content: bytes, data: bytes) -> None:
        if sum(map(len, self._shelf.blobs.values())) + len(data) > BLOBS_BYTES_MAX:
            raise Invalid("blobs", f"at most {BLOBS_BYTES_MAX} bytes in all")
        self._shelf.blobs[content] = data

    async def fetch(self, command: Command) -> Json:
        peer, content = command.peer(), command.hex("content_hash", HASH_BYTES)
        length = command.count("length", 0) if "length" in command else None
        began = time.perf_counter()
        request = BlobRequest(content_hash=content, length=length).to_bytes()
        data = bytearray()
        async with self._network.request_parts(
            peer, "fetch_blob", request, deadline_ms=60_000, bytes_max=BLOB_BYTES_MAX
        ) as answer:
            while (part := await answer.part()) is not None:
                data += part
            size = BlobEnd.from_bytes(answer.last).size
        if length is not None and len(data) > length:
            raise Invalid("fetch_blob", f"{len(data)} bytes, where {length} were asked for")
        if length is None:
            if size != len(data) or codec.content_id(bytes(data)) != content:
                raise Invalid("fetch_blob", f"{len(data)} bytes that are not blob {content.hex()}")
            self._keep(bytes(data))
        return {"size": len(data), "ms": round((time.perf_counter() - began) * 1_000)}

    async def forge_blob(self, command: Command) -> Json:
        self._hold(command.hex("content_hash", HASH_BYTES), command.hex("data"))
        return {}

    async def served(self, command: Command) -> Json:
        del command
        return {"blobs": self._shelf.served_blobs, "bytes": self._shelf.served_bytes}

    # --- gossip --------------------------------------------------------------------------------------------

    async def world(self, command: Command) -> Json:
        known = genesis.decode_genesis(command.hex("genesis"))
        self._worlds[known.header.world_id] = known
        return {"world_id": known.header.world_id}

    async def join(self, command: Command) -> Json:
        await self._join(_topic(command), self._tell)
        return {}

    def _tell(self, message: Message, verdict: Verdict) -> None:
        if message.forwarder == self._network.peer_id:
            return
        sender = names.peer_text(message.author)
        told = {"topic": message.topic, "verdict": verdict.value, "data": message.data.hex(), "from": sender}
        self._say({"event": "gossip"} | told)

    async def _join(self, topic: str, judged: Callable[[Message, Verdict], None]) -> None:
        world_id, kind = split_topic(topic)
        if world_id not in self._worlds:
            raise Missing("genesis", f"of world {world_id}")
        check = topic_check(self._worlds[world_id], kind, judged, is_careless=self._is_careless)
        subscription = self._topics[topic] = await self._network.join(topic, check)

        async def drain() -> None:
            while True:
                await subscription.receive()

        self._nursery.start_soon(drain)

    async def mesh(self, command: Command) -> Json:
        known = self._network._gossip._pubsub.peer_topics.get(_topic(command), ())
        return {"peers": sorted(names.peer_text(peer.to_bytes()) for peer in known)}

    async def publish(self, command: Command) -> Json:
        if (topic := _topic(command)) not in self._topics:
            raise Usage(f"topic {topic} is not joined")
        try:
            await self._topics[topic].publish(command.hex("data"))
        except ValueError as error:
            raise Invalid("message", str(error)) from error
        return {}

    # --- DHT -----------------------------------------------------------------------------------------------

    async def dht_put(self, command: Command) -> Json:
        await self._network.dht.put_record(command.text("key"), command.hex("value"))
        return {}

    async def dht_get(self, command: Command) -> Json:
        found = await self._network.dht.get_record(command.text("key"))
        if found is None:
            raise Missing("record", command.text("key"))
        return {"value": found.hex()}

    async def dht_held(self, command: Command) -> Json:
        record = self._network.dht._kad.value_store.get(command.text("key").encode())
        if record is None:
            raise Missing("record", command.text("key"))
        put_at = parse_time_received(record.timeReceived) or 0.0
        return {"value": record.value.hex(), "age_ms": max(0, round((time.time() - put_at) * 1_000))}

    async def dht_peers(self, command: Command) -> Json:
        del command
        table = self._network.dht._kad.routing_table.get_peer_ids()
        return {"peers": sorted(names.peer_text(peer.to_bytes()) for peer in table)}

    async def provide(self, command: Command) -> Json:
        await self._network.dht.provide(command.hex("content_hash", HASH_BYTES))
        return {}

    async def find_providers(self, command: Command) -> Json:
        found = await self._network.dht.find_providers(command.hex("content_hash", HASH_BYTES))
        listed = [{"peer": names.peer_text(info.peer_id), "addrs": list(info.addrs)} for info in found]
        return {"providers": listed}

    # --- worlds --------------------------------------------------------------------------------------------

    async def check_head(self, command: Command) -> Json:
        head = WorldHeadAnnounce.from_bytes(command.hex("head"))
        chain.check_head(head, head.header.world_id)
        return _shown(head)

    async def head(self, command: Command) -> Json:
        world_id = command.text("world_id")
        if "peer" in command:
            head = await self._client(command).head(world_id)
        else:
            found = await self._network.dht.get_record(names.head_key(world_id))
            head = None if found is None else rules.check_head_message(found, world_id)
        if head is None:
            raise Missing("head", f"of world {world_id}")
        return _shown(head) | {"head": head.to_bytes().hex()}

    def _client(self, command: Command) -> DistributedClient:
        return DistributedClient(self._network, command.peer())

    async def state_proof(self, command: Command) -> Json:
        proved = await self._client(command).state_value(
            command.text("world_id"), command["namespace"], command.hex("key")
        )
        found = {
            "height": proved.block.height,
            "state_root": proved.block.state_root.hex(),
            "trust": "attested",
        }
        return found | ({} if proved.value is None else {"value": codec.encode(proved.value).hex()})

    async def receipt_proof(self, command: Command) -> Json:
        envelope_hash = command.hex("envelope_hash", HASH_BYTES)
        proved = await self._client(command).receipt(command.text("world_id"), envelope_hash)
        receipts = [
            {"code": one.code} | ({} if one.index is None else {"index": one.index})
            for one in proved.receipts
        ]
        heights = {"height": proved.block.height, "head_height": proved.head.commit.record.height}
        return heights | {"receipts": receipts, "trust": "attested"}

    async def submit(self, command: Command) -> Json:
        actor = SigningKey(command.hex("seed", SEED_BYTES))
        if type(command["atomic"]) is not bool:
            raise Usage("atomic must be true or false")
        asked = command["actions"]
        if type(asked) is not list or not all(_is_action(action) for action in asked):
            raise Usage("actions must be a list of [kind, payload]")
        try:
            actions = tuple((kind, unshown(payload)) for kind, payload in asked)
        except (TypeError, ValueError) as error:
            raise Usage(f"actions: {error}") from None
        action_envelope = ActionEnvelope(
            world_id=command.text("world_id"),
            actor_id=actor.identity,
            nonce=command.count("nonce", 0),
            expires_at_height=command.count("expires_at_height", 0),
            timestamp_ms=command.count("timestamp_ms", 0),
            atomic=command["atomic"],
            actions=actions,
        )
        envelope = seal(action_envelope, actor)
        [result] = await self._client(command).submit(command.text("world_id"), [envelope])
        told = {"outcome": result.outcome, "reason": result.reason, "message": result.message}
        made = {"envelope_hash": envelope.hash().hex(), "envelope": envelope.to_bytes().hex()}
        return made | {name: value for name, value in told.items() if value is not None}

    async def mirror(self, command: Command) -> Json:
        world = await mirror(self._client(command), command.text("world_id"), self._keep)
        before = self._shelf.worlds.get(command.text("world_id"))
        if before is None or head_order(before.head) < head_order(world.head):  # an older one replaces none
            self._shelf.worlds[command.text("world_id")] = before = world
        return {"height": before.head.commit.record.height}

    async def follow(self, command: Command) -> Json:
        world_id, best = command.text("world_id"), 0

        def judged(message: Message, verdict: Verdict) -> None:
            nonlocal best
            if verdict is not Verdict.ACCEPT or message.forwarder == self._network.peer_id:
                return
            head = rules.check_head_message(message.data, world_id)
            height = head.commit.record.height
            if height > best:
                best = height
                told = {"world_id": world_id, "height": height, "block_hash": head.block_hash.hex()}
                self._say({"event": "head"} | told)

        await self._join(names.topic(world_id, "head"), judged)
        return {}

    # --- vectors -------------------------------------------------------------------------------------------

    async def vectors(self, command: Command) -> Json:
        folder = Path(command.text("dir"))
        if not await trio.Path(folder).is_dir():
            raise Usage(f"dir: {folder} is no folder")
        return {"files": await trio.to_thread.run_sync(check_vectors, folder)}


def _shown(head: WorldHeadAnnounce) -> Json:
    commit = head.commit.record
    return {
        "world_id": commit.world_id,
        "epoch": commit.epoch,
        "height": commit.height,
        "as_of_ms": commit.as_of_ms,
        "block_hash": head.block_hash.hex(),
    }
