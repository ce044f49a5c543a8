"""A node that asks a true one and twists what it says: what a light client must see through.

Hides: its host. Guarantees: whatever is no lie is the true node's answer, byte for byte, but for promises, which are
its own and which it does not keep. The lies are those of lies.py.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from bootstrap.demo.processes import free_ports
from bootstrap.node import now_ms
from interop.lies import promised, twisted, twisted_part
from p2p import names
from p2p.host import HostConfig, open_network
from p2p.identity import Identity
from p2p.network import PartsRoute, PeerId, Route, SendPart
from runtime.keys import SigningKey
from runtime.messages import (
    BatchAnswer,
    BlobRequest,
    BlocksRequest,
    GenesisAnswer,
    HeadAnswer,
    ReceiptAnswer,
    StateProofAnswer,
    SubmitRequest,
)
from runtime.services import HeadRecords
from runtime.services.client import DistributedClient

TWISTED = (
    HeadAnswer.NAME,
    StateProofAnswer.NAME,
    ReceiptAnswer.NAME,
    GenesisAnswer.NAME,
    BatchAnswer.NAME,
)
TWISTED_PARTS = (BlobRequest.NAME, BlocksRequest.NAME)


@dataclass(slots=True)
class Liar:
    """`lie` is told from now on; with "" it tells the truth. `browser_addr` is where a browser can dial it."""

    peer_id: str
    addr: str
    browser_addr: str
    lie: str = ""


@asynccontextmanager
async def open_liar(client: DistributedClient) -> AsyncIterator[Liar]:
    """Listens as a node does, for browsers too; `client` asks the true node."""
    tcp, websocket = free_ports(2)
    identity = Identity(secrets.token_bytes(32))
    peer_id = names.peer_text(identity.peer_id)
    listen = (f"/ip4/127.0.0.1/tcp/{tcp}", f"/ip4/127.0.0.1/tcp/{websocket}/ws")
    liar = Liar(peer_id, *(f"{addr}/p2p/{peer_id}" for addr in listen))

    async def answer(method: str, caller: PeerId, body: bytes) -> bytes:
        del caller
        return twisted(liar.lie, method, await client.network.request(client.peer, method, body))

    async def answer_in_parts(method: str, caller: PeerId, body: bytes, send: SendPart) -> bytes:
        del caller
        async with client.network.request_parts(client.peer, method, body) as true:
            while (part := await true.part()) is not None:
                await send(twisted_part(liar.lie, method, part))
            return true.last

    async def promise(caller: PeerId, body: bytes) -> bytes:
        del caller
        request = SubmitRequest.from_bytes(body)
        return promised(liar.lie, request, SigningKey(identity.seed), now_ms()).to_bytes()

    config = HostConfig(
        identity=identity, listen=listen, rng=random.Random(secrets.randbits(128)), now_ms=now_ms
    )
    routes = {name: Route(partial(answer, name)) for name in TWISTED}
    in_parts = {name: PartsRoute(partial(answer_in_parts, name)) for name in TWISTED_PARTS}
    submit = {SubmitRequest.NAME: Route(promise, request_bytes_max=names.REQUEST_LARGE_BYTES_MAX)}
    async with open_network(config, routes | in_parts | submit, HeadRecords()):
        yield liar
