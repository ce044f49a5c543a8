"""The method table: typed handlers behind opaque rr routes, found by world.

Hides: decoding of request bodies, the choice of the world, and the mapping of errors to wire codes.
Guarantees: routes stand before the node listens; a world that is not (yet) mounted is NOT_AVAILABLE, a method that no
role of this node answers is UNSUPPORTED. Implements docs/protocol.md, section "Methods".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from p2p import names
from p2p.errors import Code, RequestFailed
from p2p.network import PartsRoute, PeerId, Route, Routes, SendPart
from runtime import messages
from runtime.errors import WorldError
from runtime.messages import Body
from runtime.services import as_failure

OneAnswer: TypeAlias = Callable[[PeerId, Any], Awaitable[Body]]
PartsAnswer: TypeAlias = Callable[[PeerId, Any, SendPart], Awaitable[Body]]
Handlers: TypeAlias = Mapping[str, OneAnswer | PartsAnswer]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the method table. `of_world`: the request names the world that answers.

    `cost`: as how many requests one counts against requests_per_s_per_peer_max: about its time on the event loop, in
    units of a request that costs next to nothing.
    """

    request: type[Body]
    of_world: bool = True
    parts: bool = False
    request_bytes_max: int = names.REQUEST_BYTES_MAX
    cost: int = 1


METHODS: Final[Mapping[str, Method]] = {
    "hello": Method(messages.Empty, of_world=False),
    "status": Method(messages.Empty, of_world=False, cost=20),
    "fetch_blob": Method(messages.BlobRequest, of_world=False, parts=True, cost=4),
    "has_blobs": Method(messages.HasBlobsRequest, of_world=False, cost=100),
    "get_genesis": Method(messages.WorldRequest),
    "get_world_head": Method(messages.WorldRequest),
    "get_commit": Method(messages.WorldRequest),
    "get_block": Method(messages.BlockRequest),
    "get_blocks": Method(messages.BlocksRequest, parts=True, cost=50),
    "get_batch": Method(messages.BatchRequest),
    "get_bundle": Method(messages.BundleRequest, cost=5),
    "get_receipt": Method(messages.ReceiptRequest, cost=10),
    "get_state_proof": Method(messages.StateProofRequest, cost=5),
    "get_evidence": Method(messages.EvidenceRequest, parts=True, cost=5),
    "submit_actions": Method(messages.SubmitRequest, request_bytes_max=names.REQUEST_LARGE_BYTES_MAX),
    "action_status": Method(messages.ActionStatusRequest),
    "get_envelopes": Method(messages.EnvelopesRequest, parts=True, cost=20),
    "lease_acquire": Method(messages.LeaseAcquireRequest),
    "lease_renew": Method(messages.LeaseTermRequest),
    "lease_release": Method(messages.LeaseTermRequest),
    "lease_get": Method(messages.WorldRequest),
    "commit_batch": Method(messages.CommitBatchRequest, request_bytes_max=names.REQUEST_LARGE_BYTES_MAX),
    "execute_batch": Method(messages.ExecuteBatchRequest, request_bytes_max=names.REQUEST_LARGE_BYTES_MAX),
}


class MethodTable:
    """What a node answers. The routes are fixed at birth; worlds are mounted when their genesis is verified."""

    def __init__(self) -> None:
        self._node: dict[str, OneAnswer | PartsAnswer] = {}
        self._worlds: dict[str, dict[str, OneAnswer | PartsAnswer]] = {}

    def mount_node(self, handlers: Handlers) -> None:
        """Answer methods that name no world."""
        self._add(self._node, handlers, of_world=False)

    def mount_world(self, world_id: str, handlers: Handlers) -> None:
        """Answer methods for one world; several roles add to the same world. A method twice is a bug."""
        self._add(self._worlds.setdefault(world_id, {}), handlers, of_world=True)

    @staticmethod
    def _add(table: dict[str, OneAnswer | PartsAnswer], handlers: Handlers, *, of_world: bool) -> None:
        for name, handler in handlers.items():
            assert name not in table, f"two handlers for {name}"
            assert METHODS[name].of_world is of_world, f"{name} is mounted at the wrong place"
            table[name] = handler

    def routes(self) -> Routes:
        """One rr route per method, for open_network."""
        return {
            name: PartsRoute(self._parts_handler(name, method), method.request_bytes_max, cost=method.cost)
            if method.parts
            else Route(self._handler(name, method), method.request_bytes_max, cost=method.cost)
            for name, method in METHODS.items()
        }

    def _find(self, name: str, method: Method, body: bytes) -> tuple[Any, Body]:
        try:
            request = method.request.from_bytes(body)
        except WorldError as error:
            raise as_failure(error) from None
        if not method.of_world:
            handlers = self._node
        else:
            world_id: str = getattr(request, "world_id")  # noqa: B009  # every of_world request has one
            if world_id not in self._worlds:
                raise RequestFailed(Code.ERR_NOT_AVAILABLE, f"world {world_id} is not served here")
            handlers = self._worlds[world_id]
        if name not in handlers:
            raise RequestFailed(Code.ERR_UNSUPPORTED, f"no role of this node answers {name}")
        return handlers[name], request

    def _handler(self, name: str, method: Method) -> Callable[[PeerId, bytes], Awaitable[bytes]]:
        async def handle(caller: PeerId, body: bytes) -> bytes:
            handler, request = self._find(name, method, body)
            try:
                answer: Body = await handler(caller, request)
            except WorldError as error:
                raise as_failure(error) from error
            return answer.to_bytes()

        return handle

    def _parts_handler(
        self, name: str, method: Method
    ) -> Callable[[PeerId, bytes, SendPart], Awaitable[bytes]]:
        async def handle(caller: PeerId, body: bytes, send: SendPart) -> bytes:
            handler, request = self._find(name, method, body)
            try:
                answer: Body = await handler(caller, request, send)
            except WorldError as error:
                raise as_failure(error) from error
            return answer.to_bytes()

        return handle
