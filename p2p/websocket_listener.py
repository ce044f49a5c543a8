"""The listener for browsers, which cannot open a TCP connection, beside the TCP one. Nobody is dialled by WebSocket.

Hides: how libp2p listens. Guarantees: the HTTP handshake is a part of the first read or write, so that a place, a time
and a handshake are counted as for TCP, by the address of the client; the library's own listener does it outside of
every bound and does not know whose a connection is. Implements docs/protocol.md, section "Connections".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import trio
from libp2p.abc import ITransport
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCPListener
from multiaddr import Multiaddr

from p2p.websocket import ServerSide

READ_BYTES_MAX: Final = (
    4 * 1024
)  # taken apart without a turn of the scheduler between: 5 ms, when all of it is pings
CLOSE_S_MAX: Final = 0.5
_SUFFIX: Final = Multiaddr("/ws")


class WebSocketStream(ReadWriteCloser):
    """The bytes inside a WebSocket, as a TCP stream gives them. The handshake is done by the first read or write."""

    def __init__(self, tcp: TrioTCPStream) -> None:
        self._tcp = tcp
        self._side = ServerSide()
        self._held = memoryview(b"")
        self._reading = trio.Lock()

    async def read(self, n: int | None = None) -> bytes:
        """1..n bytes; b"" at the end. Raises ConnectionClosedError when the connection is broken."""
        if n == 0:
            return b""
        async with self._reading:
            while not self._held and not self._side.ended:
                await self._receive()
            given = self._held[:n]
            self._held = self._held[len(given) :]
            return bytes(given)

    async def write(self, data: bytes) -> None:
        """All of it, as one message. Raises ConnectionClosedError."""
        if not self._side.is_open:
            async with self._reading:
                while not self._side.is_open and not self._side.ended:
                    await self._receive()
        if self._side.ended:
            raise ConnectionClosedError(f"WebSocket: {self._side.ended}", transport="websocket")
        await self._tcp.write(self._side.framed(data))

    async def close(self) -> None:
        """The socket is closed whatever becomes of the last word: broken, not read, or this task cancelled.

        Where somebody waits to write, the client does not read: it gets none.
        """
        self._side.close()
        try:
            if not self._tcp.write_lock.locked():
                with trio.move_on_after(CLOSE_S_MAX), suppress(ConnectionClosedError):
                    await self._answer()
        finally:
            await self._tcp.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._tcp.get_remote_address()

    async def _receive(self) -> None:
        await trio.lowlevel.checkpoint()  # what is held below is given without one
        self._side.feed(await self._tcp.read(READ_BYTES_MAX))
        self._held = memoryview(bytes(self._held) + self._side.take())
        await self._answer()

    async def _answer(self) -> None:
        owed = self._side.to_send()
        if owed:
            await self._tcp.write(owed)


class WebSocketListener(TCPListener):
    """Accepts as the TCP listener does; each stream is wrapped before the host sees it."""

    def __init__(self, handler: Callable[[Any], Awaitable[None]]) -> None:
        async def wrapped(tcp: ReadWriteCloser) -> None:
            assert isinstance(tcp, TrioTCPStream)
            await handler(WebSocketStream(tcp))

        super().__init__(wrapped)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(addr.encapsulate(_SUFFIX) for addr in super().get_addrs())


class WebSocketTransport(ITransport):
    """Listens on `/ip4|ip6/HOST/tcp/PORT/ws`; whoever can dial uses TCP."""

    async def dial(self, maddr: Multiaddr) -> Any:
        raise OpenConnectionError(f"{maddr}: WebSocket addresses are for browsers to dial")

    def create_listener(self, handler_function: Any) -> WebSocketListener:
        return WebSocketListener(handler_function)

    def can_dial(self, maddr: Multiaddr) -> bool:
        del maddr
        return False

    def can_listen(self, maddr: Multiaddr) -> bool:
        return [protocol.name for protocol in maddr.protocols()][1:] == ["tcp", "ws"]

    def protocols(self) -> list[str]:
        return ["ws"]
