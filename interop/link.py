"""A link that carries little, as a process of its own: `python -m interop.link PORT` carries to that port of this host.

Its own port is the one line on stdout; it ends with its stdin. Apart from the driver, as what goes over it must not
wait while the driver is busy: who hears nothing for a while takes the other side for dead.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from typing import Final

import trio

BYTES_PER_S: Final = 32 << 10  # each way
CHUNK: Final = 4 << 10


async def _carry(port: int, dialler: trio.SocketStream) -> None:
    """One connection, until either side ends it."""
    async with dialler:
        try:
            listener = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:  # nobody listens any more: who dialled sees its end
            return
        async with listener, trio.open_nursery() as nursery:
            for source, target in ((dialler, listener), (listener, dialler)):
                nursery.start_soon(_carry_one_way, source, target, nursery.cancel_scope)


async def _carry_one_way(
    source: trio.SocketStream, target: trio.SocketStream, ended: trio.CancelScope
) -> None:
    with suppress(trio.BrokenResourceError):  # either side may reset it
        while chunk := await source.receive_some(CHUNK):
            await trio.sleep(len(chunk) / BYTES_PER_S)
            await target.send_all(chunk)
    ended.cancel()


async def main(port: int) -> None:
    """Carry until stdin ends."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, partial(_carry, port), [listener]))
        print(listener.socket.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
