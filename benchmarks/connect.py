"""From a fresh host to a connection that carries streams: dial, noise, yamux, on loopback."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Options, Row, Side, alternate, main, side, stock_libp2p


async def rows(options: Options) -> list[Row]:
    """One connection after the other, as a rate: more is better, as in the other rows."""
    runs = 3 if options.quick else 15
    async with side("ours") as server, side("ours") as client, side("stock") as their, side("stock") as they:
        ours, peers = await alternate(
            "connect",
            partial(_rate, client, await server.ask("addrs")),
            partial(_rate, they, await their.ask("addrs")),
            runs,
        )
    return [Row("connect", "dial, noise, yamux", "connects/s", ours, stock_libp2p(), peers, runs, ">= 10")]


async def _rate(client: Side, addrs: list[str]) -> float:
    return 1_000 / float(await client.ask("connect", addrs=addrs))


if __name__ == "__main__":
    main(rows)
