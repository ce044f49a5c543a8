"""The command table of docs/interop.md, each command a method.

Hides: nothing; it is the table. Guarantees: bytes are hex, peers base58; an error says its kind. What is checked is
checked by runtime/, what is sent is sent by p2p/.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import trio
from blake3 import blake3
from libp2p.peer.id import ID

from interop.py import raw
from interop.py.mirror import mirror
from interop.py.rules import topic_check
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
from runtime.keys import SigningKey
from runtime.messages import BlobEnd, BlobRequest
from runtime.records import ActionEnvelope, Genesis, WorldHeadAnnounce, seal
from runtime.services.client import DistributedClient

REQUEST_MS: Final = 10_000
BLOB_BYTES_MAX: Final = 64 << 20
BLOBS_BYTES_MAX: Final = 1 << 30
Json: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[Json], None]


class Usage(Exception):
    """A command that is not known or lacks something."""


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
        case _:
            kind, message = "usage", f"{type(error).__name__}: {error}"
    return {"kind": kind, "message": message}


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

    def table(self) -> dict[str, Callable[[Json], Awaitable[Json]]]:
        """Every command by its name: the methods that do not begin with an underscore."""
        own = {name: getattr(self, name) for name in vars(type(self)) if not name.startswith("_")}
        return {name: method for name, method in own.items() if name != "table"}

    # --- connections ---------------------------------------------------------------------------------------

    async def dial(self, command: Json) -> Json:
        peer = await self._network.connect([command["addr"]])
        await self._protocols(peer)
        return {"peer": names.peer_text(peer)}

    async def identify(self, command: Json) -> Json:
        peer = names.peer_from_text(command["peer"])
        protocols = await self._protocols(peer)
        return {"protocols": sorted(map(str, protocols)), "agent": ""}  # py-libp2p does not keep it

    async def _protocols(self, peer: bytes) -> list[str]:
        """What a peer speaks, once it has said so. Raises RequestTimeout."""
        store = self._network._host.get_peerstore()
        with trio.move_on_after(REQUEST_MS / 1_000):
            while ID(peer) not in store.peer_ids() or not store.get_protocols(ID(peer)):
                await trio.sleep(0.01)
            return list(store.get_protocols(ID(peer)))
        raise RequestTimeout(names.peer_text(peer), "identify", REQUEST_MS)

    async def disconnect(self, command: Json) -> Json:
        await self._network._host.disconnect(ID(names.peer_from_text(command["peer"])))
        return {}

    async def peers(self, command: Json) -> Json:
        del command
        return {"peers": [names.peer_text(peer) for peer in self._network.peers()]}

    # --- request / response --------------------------------------------------------------------------------

    async def request(self, command: Json) -> Json:
        return {"body": (await self._ask(command)).hex()}

    async def _ask(self, command: Json) -> bytes:
        peer, body = names.peer_from_text(command["peer"]), bytes.fromhex(command["body"])
        wait_ms = command.get("timeout_ms", REQUEST_MS)
        if command.get("one_shot"):
            return await raw.request_alone(self._network, peer, command["method"], body, wait_ms)
        return await self._network.request(peer, command["method"], body, deadline_ms=wait_ms)

    async def request_parts(self, command: Json) -> Json:
        peer, body = names.peer_from_text(command["peer"]), bytes.fromhex(command["body"])
        parts = size = 0
        hasher = blake3()
        async with self._network.request_parts(
            peer, command["method"], body, deadline_ms=command.get("timeout_ms", REQUEST_MS)
        ) as answer:
            while (part := await answer.part()) is not None:
                parts, size = parts + 1, size + len(part)
                hasher.update(part)
            return {"parts": parts, "bytes": size, "hash": hasher.hexdigest(), "last": answer.last.hex()}

    async def requests(self, command: Json) -> Json:
        ok, errors, left = 0, list[str](), command["count"]

        async def ask_on() -> None:
            nonlocal ok, left
            while left > 0:
                left -= 1
                try:
                    await self._ask(command)
                except NetworkError as error:
                    errors.append(str(error))
                else:
                    ok += 1

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(command["in_flight"]):
                nursery.start_soon(ask_on)
        found: Json = {"ok": ok, "failed": len(errors), "ms": round((time.perf_counter() - began) * 1_000)}
        return found | ({"first_error": errors[0]} if errors else {})

    async def send_raw(self, command: Json) -> Json:
        peer, data = names.peer_from_text(command["peer"]), bytes.fromhex(command["data"])
        answer, end = await raw.send_raw(self._network, peer, data, command.get("timeout_ms", REQUEST_MS))
        return {"answer": answer.hex(), "end": end}

    # --- blobs ---------------------------------------------------------------------------------------------

    async def put_blob(self, command: Json) -> Json:
        if "data" in command:
            data = bytes.fromhex(command["data"])
        else:
            data = blake3(command["seed"].to_bytes(8, "big")).digest(length=command["size"])
        return {"content_hash": self._keep(data).hex()}

    def _keep(self, data: bytes) -> bytes:
        if sum(map(len, self._shelf.blobs.values())) + len(data) > BLOBS_BYTES_MAX:
            raise Invalid("blobs", f"at most {BLOBS_BYTES_MAX} bytes in all")
        content = codec.content_id(data)
        self._shelf.blobs[content] = data
        return content

    async def fetch(self, command: Json) -> Json:
        peer, content = names.peer_from_text(command["peer"]), bytes.fromhex(command["content_hash"])
        began = time.perf_counter()
        request = BlobRequest(content_hash=content, length=command.get("length")).to_bytes()
        data = bytearray()
        async with self._network.request_parts(
            peer, "fetch_blob", request, deadline_ms=60_000, bytes_max=BLOB_BYTES_MAX
        ) as answer:
            while (part := await answer.part()) is not None:
                data += part
            size = BlobEnd.from_bytes(answer.last).size
        if "length" not in command:
            if size != len(data) or codec.content_id(bytes(data)) != content:
                raise Invalid("fetch_blob", f"{len(data)} bytes that are not blob {content.hex()}")
            self._keep(bytes(data))
        return {"size": len(data), "ms": round((time.perf_counter() - began) * 1_000)}

    async def forge_blob(self, command: Json) -> Json:
        self._shelf.blobs[bytes.fromhex(command["content_hash"])] = bytes.fromhex(command["data"])
        return {}

    # --- gossip --------------------------------------------------------------------------------------------

    async def world(self, command: Json) -> Json:
        known = genesis.decode_genesis(bytes.fromhex(command["genesis"]))
        self._worlds[known.header.world_id] = known
        return {"world_id": known.header.world_id}

    async def join(self, command: Json) -> Json:
        await self._join(command["topic"], self._tell)
        return {}

    def _tell(self, message: Message, verdict: Verdict) -> None:
        if message.forwarder == self._network.peer_id:
            return
        sender = names.peer_text(message.author)
        told = {"topic": message.topic, "verdict": verdict.value, "data": message.data.hex(), "from": sender}
        self._say({"event": "gossip"} | told)

    async def _join(self, topic: str, judged: Callable[[Message, Verdict], None]) -> None:
        check = topic_check(topic, self._worlds, judged, is_careless=self._is_careless)
        subscription = self._topics[topic] = await self._network.join(topic, check)

        async def drain() -> None:
            while True:
                await subscription.receive()

        self._nursery.start_soon(drain)

    async def mesh(self, command: Json) -> Json:
        known = self._network._gossip._pubsub.peer_topics.get(command["topic"], ())
        return {"peers": sorted(names.peer_text(peer.to_bytes()) for peer in known)}

    async def publish(self, command: Json) -> Json:
        if command["topic"] not in self._topics:
            raise Usage(f"topic {command['topic']} is not joined")
        try:
            await self._topics[command["topic"]].publish(bytes.fromhex(command["data"]))
        except ValueError as error:
            raise Invalid("message", str(error)) from error
        return {}

    # --- DHT -----------------------------------------------------------------------------------------------

    async def dht_put(self, command: Json) -> Json:
        await self._network.dht.put_record(command["key"], bytes.fromhex(command["value"]))
        return {}

    async def dht_get(self, command: Json) -> Json:
        found = await self._network.dht.get_record(command["key"])
        if found is None:
            raise Missing("record", command["key"])
        return {"value": found.hex()}

    async def dht_peers(self, command: Json) -> Json:
        del command
        table = self._network.dht._kad.routing_table.get_peer_ids()
        return {"peers": sorted(names.peer_text(peer.to_bytes()) for peer in table)}

    async def provide(self, command: Json) -> Json:
        await self._network.dht.provide(bytes.fromhex(command["content_hash"]))
        return {}

    async def find_providers(self, command: Json) -> Json:
        found = await self._network.dht.find_providers(bytes.fromhex(command["content_hash"]))
        listed = [{"peer": names.peer_text(info.peer_id), "addrs": list(info.addrs)} for info in found]
        return {"providers": listed}

    # --- worlds --------------------------------------------------------------------------------------------

    async def check_head(self, command: Json) -> Json:
        head = WorldHeadAnnounce.from_bytes(bytes.fromhex(command["head"]))
        chain.check_head(head, head.header.world_id)
        return _shown(head)

    async def head(self, command: Json) -> Json:
        world_id = command["world_id"]
        if "peer" in command:
            head = await self._client(command).head(world_id)
        else:
            found = await self._network.dht.get_record(names.head_key(world_id))
            head = None if found is None else rules.check_head_message(found, world_id)
        if head is None:
            raise Missing("head", f"of world {world_id}")
        return _shown(head) | {"head": head.to_bytes().hex()}

    def _client(self, command: Json) -> DistributedClient:
        return DistributedClient(self._network, names.peer_from_text(command["peer"]))

    async def state_proof(self, command: Json) -> Json:
        proved = await self._client(command).state_value(
            command["world_id"], command["namespace"], bytes.fromhex(command["key"])
        )
        found = {
            "height": proved.block.height,
            "state_root": proved.block.state_root.hex(),
            "trust": "attested",
        }
        return found | ({} if proved.value is None else {"value": codec.encode(proved.value).hex()})

    async def receipt_proof(self, command: Json) -> Json:
        proved = await self._client(command).receipt(
            command["world_id"], bytes.fromhex(command["envelope_hash"])
        )
        receipts = [
            {"code": one.code} | ({} if one.index is None else {"index": one.index})
            for one in proved.receipts
        ]
        heights = {"height": proved.block.height, "head_height": proved.head.commit.record.height}
        return heights | {"receipts": receipts, "trust": "attested"}

    async def submit(self, command: Json) -> Json:
        actor = SigningKey(bytes.fromhex(command["seed"]))
        fields = {
            name: command[name]
            for name in ("world_id", "nonce", "expires_at_height", "timestamp_ms", "atomic")
        }
        actions = tuple((kind, unshown(payload)) for kind, payload in command["actions"])
        envelope = seal(ActionEnvelope(actor_id=actor.identity, actions=actions, **fields), actor)
        [result] = await self._client(command).submit(command["world_id"], [envelope])
        told = {"outcome": result.outcome, "reason": result.reason, "message": result.message}
        made = {"envelope_hash": envelope.hash().hex(), "envelope": envelope.to_bytes().hex()}
        return made | {name: value for name, value in told.items() if value is not None}

    async def mirror(self, command: Json) -> Json:
        world = await mirror(self._client(command), command["world_id"], self._keep)
        self._shelf.worlds[command["world_id"]] = world
        return {"height": world.head.commit.record.height}

    async def follow(self, command: Json) -> Json:
        world_id, best = command["world_id"], 0

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

    async def vectors(self, command: Json) -> Json:
        return {"files": await trio.to_thread.run_sync(check_vectors, command["dir"])}


def _shown(head: WorldHeadAnnounce) -> Json:
    commit = head.commit.record
    return {
        "world_id": commit.world_id,
        "epoch": commit.epoch,
        "height": commit.height,
        "as_of_ms": commit.as_of_ms,
        "block_hash": head.block_hash.hex(),
    }
