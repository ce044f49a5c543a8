"""Requests and answers of 200 bytes between two processes: over our session, and on a stream of its own each.

The peer is stock py-libp2p's own request_response helper, a new stream for each request, with as many in flight.
"""

from __future__ import annotations

from functools import partial

from benchmarks.harness import Options, Row, Side, alternate, main, side, stock_libp2p

SIZE = 200


async def rows(options: Options) -> list[Row]:
    """One in flight, 32 in flight, one-shot."""
    runs, scale = (2, 5) if options.quick else (7, 1)
    plan = (
        ("rr-1", "rr, one in flight", "requests", 1, 2_000, ">= 4"),
        ("rr-32", "rr, 32 in flight", "requests", 32, 8_000, ">= 10"),
        ("rr-one-shot", "rr on a stream of its own, one in flight", "one_shots", 1, 500, ""),
    )
    found = []
    async with side("ours") as server, side("ours") as client, side("stock") as their, side("stock") as they:
        peer = await client.ask("dial", addrs=await server.ask("addrs"))
        their_peer = await they.ask("dial", addrs=await their.ask("addrs"))
        for name, what, command, in_flight, count, target in plan:
            ours, peers = await alternate(
                name,
                partial(_rate, client, command, peer, count // scale, in_flight),
                partial(_rate, they, "one_shots", their_peer, 500 // scale, in_flight),
                runs,
            )
            found.append(Row(name, f"{what}, 200 B", "requests/s", ours, stock_libp2p(), peers, runs, target))
    return found


async def _rate(client: Side, command: str, peer: str, count: int, in_flight: int) -> float:
    return float(await client.ask(command, peer=peer, count=count, in_flight=in_flight, size=SIZE))


if __name__ == "__main__":
    main(rows)
