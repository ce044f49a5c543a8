"""Signed gossip of 300 bytes between two processes, there and back, with 16 questions under way.

A closed loop, since stock Pubsub drops the 33rd message of a burst: so both sides lose nothing, and what is measured is
what a message costs.
"""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Options, Row, Side, alternate, main, side, stock_libp2p

SIZE, IN_FLIGHT = 300, 16


async def rows(options: Options) -> list[Row]:
    """Messages a second, both directions together."""
    runs, count = (2, 100) if options.quick else (7, 800)
    async with side("ours") as server, side("ours") as client, side("stock") as their, side("stock") as they:
        await client.ask("dial", addrs=await server.ask("addrs"))
        await they.ask("dial", addrs=await their.ask("addrs"))
        ours, peers = await alternate(
            "gossip", partial(_rate, client, count), partial(_rate, they, count), runs
        )
    what = f"signed gossip of {SIZE} B, {IN_FLIGHT} questions under way"
    return [Row("gossip", what, "messages/s", ours, stock_libp2p(), peers, runs)]


async def _rate(client: Side, count: int) -> float:
    return float(await client.ask("gossip", count=count, in_flight=IN_FLIGHT, size=SIZE))


if __name__ == "__main__":
    main(rows)
