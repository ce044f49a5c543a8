"""Blobs by content id, fetched and checked: from one provider, and from two at once that a slow link holds.

Ours is `fetch_blob` of runtime/services/blobs.py with its look-up of candidates, ranges, hash and store behind it; the
peer of the first rows is a raw stream of stock py-libp2p that carries the same bytes out of memory, unchecked.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from benchmarks.harness import Options, Peer, Row, Side, alternate, main, side, stock_libp2p

SMALL, LARGE = 256 * 1024, 8 << 20
LINK_BYTES_PER_S = 20_000_000


async def rows(options: Options) -> list[Row]:
    """256 KiB and 8 MiB from one provider, 8 MiB from two."""
    runs = 2 if options.quick else 7
    return [*await _one_provider(runs), await _two_providers(runs)]


async def _one_provider(runs: int) -> list[Row]:
    found = []
    async with side("ours") as server, side("ours") as client, side("stock") as their, side("stock") as they:
        await client.ask("dial", addrs=await server.ask("addrs"))
        their_peer = await they.ask("dial", addrs=await their.ask("addrs"))
        for name, size, times, target in (("blob-256k", SMALL, 16, ""), ("blob-8m", LARGE, 2, ">= 1.0")):
            mine = await server.ask("hold", seed=size, size=size)
            theirs = await their.ask("hold", seed=size, size=size)
            ours, peers = await alternate(
                name,
                partial(_rate, client, content_id=mine, size=size, times=times),
                partial(_rate, they, peer=their_peer, content_id=theirs, size=size, times=times),
                runs,
            )
            what = f"blob of {size >> 10} KiB from one provider, hash checked"
            found.append(Row(name, what, "MB/s", ours, stock_libp2p(), peers, runs, target))
    return found


async def _two_providers(runs: int) -> Row:
    async with AsyncExitStack() as stack:
        slow = str(LINK_BYTES_PER_S)
        first, second = [await stack.enter_async_context(side("ours", slow)) for _ in range(2)]
        alone, both = [await stack.enter_async_context(side("ours")) for _ in range(2)]
        for provider in (first, second):
            content_id = await provider.ask("hold", seed=LARGE, size=LARGE)
            await both.ask("dial", addrs=await provider.ask("addrs"))
        # The DHT makes everybody known to everybody: the one provider is asked by name.
        only = await alone.ask("dial", addrs=await first.ask("addrs"))
        ours, peers = await alternate(
            "blob-8m-two",
            partial(_rate, both, content_id=content_id, size=LARGE, times=1),
            partial(_rate, alone, content_id=content_id, size=LARGE, times=1, only=only),
            runs,
        )
    what = "blob of 8192 KiB from two providers, each held to 20 MB/s"
    return Row("blob-8m-two", what, "MB/s", ours, Peer("one of them", ""), peers, runs, ">= 1.5")


async def _rate(client: Side, **arguments: object) -> float:
    return float(await client.ask("fetch", **arguments))


if __name__ == "__main__":
    main(rows)
